#include "common/kernels/isa/processor.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace expertmesh {

#if defined(__x86_64__)
namespace {

// What clang 14 has no names for.
struct Features {
  bool avx_vnni, amx;
};

Features features() {
  constexpr unsigned kAvxVnni = 1U << 4U;                       // leaf 7.1, EAX
  constexpr unsigned kAmx = 1U << 22U | 1U << 24U | 1U << 25U;  // leaf 7.0, EDX: BF16, TILE, INT8
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  Features found{};
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0) found.amx = (edx & kAmx) == kAmx;
  if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0) found.avx_vnni = (eax & kAvxVnni) != 0;
  return found;
}

// Linux lends tile registers to a process that asks, all its threads, and says no where the system does not save them.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM of asm/prctl.h, which is older in Debian 12
  constexpr long kTileData = 18;
  static bool const granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}

}  // namespace

bool processor_runs(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::avx_vnni:
      return processor_runs(Isa::avx2) && features().avx_vnni;
    case Isa::avx512:
      return processor_runs(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case Isa::avx512_vnni:
      return processor_runs(Isa::avx512) && __builtin_cpu_supports("avx512vnni");
    case Isa::avx512_bf16:
      return processor_runs(Isa::avx512_vnni) && __builtin_cpu_supports("avx512bf16");
    case Isa::amx:
      return processor_runs(Isa::avx512_bf16) && features().amx && may_use_tiles();
    default:
      return false;
  }
}
#elif defined(__aarch64__)
bool processor_runs(Isa isa) {
  bool const has_dot = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
  return isa == Isa::scalar || isa == Isa::neon || (isa == Isa::neon_dot && has_dot);
}
#else
bool processor_runs(Isa isa) {
  return isa == Isa::scalar;
}
#endif

}  // namespace expertmesh
