#include "common/kernels/exec.h"

#include <algorithm>
#include <iterator>

#include "common/base/check.h"
#include "common/kernels/exec_scratch.h"
#include "common/kernels/isa/processor.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

struct Kernels {
  Isa isa;
  std::string_view name;
  KernelTable const& (*table)();  // null: none is compiled for this kind of processor
};

#if defined(__x86_64__)
#define EM_X86(kernels) kernels
#define EM_ARM(kernels) nullptr
#elif defined(__aarch64__)
#define EM_X86(kernels) nullptr
#define EM_ARM(kernels) kernels
#else
#define EM_X86(kernels) nullptr
#define EM_ARM(kernels) nullptr
#endif
constexpr Kernels kKernels[] = {{Isa::scalar, "scalar", scalar_kernels},
                                {Isa::neon, "neon", EM_ARM(neon_kernels)},
                                {Isa::neon_dot, "neon_dot", EM_ARM(neon_dot_kernels)},
                                {Isa::avx2, "avx2", EM_X86(avx2_kernels)},
                                {Isa::avx_vnni, "avx_vnni", EM_X86(avx_vnni_kernels)},
                                {Isa::avx512, "avx512", EM_X86(avx512_kernels)},
                                {Isa::avx512_vnni, "avx512_vnni", EM_X86(avx512_vnni_kernels)},
                                {Isa::avx512_bf16, "avx512_bf16", EM_X86(avx512_bf16_kernels)},
                                {Isa::amx, "amx", EM_X86(amx_kernels)}};
static_assert(std::ranges::equal(kKernels, kIsas, {}, &Kernels::isa));

Kernels const& kernels_of(Isa isa) {
  return kKernels[static_cast<std::size_t>(isa)];
}

bool runs_here(Isa isa) {
  return kernels_of(isa).table != nullptr && processor_runs(isa);
}

KernelTable const& table_of(Isa isa) {
  EM_CHECK(runs_here(isa), "ISA " << name_of(isa) << " does not run on this processor");
  return kernels_of(isa).table();
}

}  // namespace

std::string_view name_of(Isa isa) {
  return kernels_of(isa).name;
}

std::optional<Isa> isa_from_name(std::string_view name) {
  auto const* const kernels = std::ranges::find(kKernels, name, &Kernels::name);
  return kernels == std::end(kKernels) ? std::nullopt : std::optional(kernels->isa);
}

std::vector<Isa> runnable_isas() {
  std::vector<Isa> isas;
  std::ranges::copy_if(kIsas, std::back_inserter(isas), runs_here);
  return isas;
}

Isa best_isa() {
  auto isas = runnable_isas();
  std::erase(isas, Isa::amx);
  return isas.back();
}

Exec::Exec(Isa isa, ThreadPool& pool, ExecLimits limits, Device* device)
    : isa_(isa),
      pool_(pool),
      limits_(limits),
      device_(device),
      table_(&table_of(isa)),
      scratch_(device ? std::make_unique<Scratch>(limits, *device) : std::make_unique<Scratch>(limits, pool.plan())) {
  if (device) device->reserve(limits);
}

Exec::~Exec() = default;

std::size_t Exec::device_bytes(ExecLimits const& limits) {
  return Scratch::wire_bytes(limits) + Scratch::wide_bytes(limits) + Scratch::staging_bytes(limits) +
         Scratch::expert_entries(limits) * sizeof(DeviceExpert);
}

}  // namespace expertmesh
