#include "common/kernels/exec.h"

#include "common/base/check.h"
#include "common/kernels/exec_scratch.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

bool runs_here(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::scalar:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::avx512_bf16:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  }
  return false;
#else
  return isa == Isa::scalar;
#endif
}

KernelTable const& table_of(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx2) return avx2_kernels();
  if (isa == Isa::avx512_bf16) return avx512_bf16_kernels();
#endif
  EM_CHECK(isa == Isa::scalar, "ISA " << name_of(isa));
  return scalar_kernels();
}

}  // namespace

std::string_view name_of(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512_bf16:
      return "avx512_bf16";
  }
  return "";
}

std::optional<Isa> isa_from_name(std::string_view name) {
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512_bf16})
    if (name_of(isa) == name) return isa;
  return std::nullopt;
}

std::vector<Isa> runnable_isas() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512_bf16})
    if (runs_here(isa)) isas.push_back(isa);
  return isas;
}

Isa best_isa() {
  return runnable_isas().back();
}

Exec::Exec(Isa isa, ThreadPool& pool, ExecLimits limits, Device* device)
    : isa_(isa),
      pool_(pool),
      limits_(limits),
      device_(device),
      table_(&table_of(isa)),
      scratch_(device ? std::make_unique<Scratch>(limits, *device)
                      : std::make_unique<Scratch>(limits, pool.num_threads())) {
  if (device) device->reserve(limits);
  EM_CHECK(runs_here(isa), "ISA " << name_of(isa) << " does not run on this processor");
}

Exec::~Exec() = default;

std::size_t Exec::device_bytes(ExecLimits const& limits) {
  return Scratch::wire_bytes(limits) + Scratch::wide_bytes(limits) + Scratch::staging_bytes(limits) +
         Scratch::expert_entries(limits) * sizeof(DeviceExpert);
}

}  // namespace expertmesh
