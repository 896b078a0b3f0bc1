// The kernels of AVX-512 with VNNI, which every processor with AVX-512 BF16 has, with products of bfloat16 by BF16.
#include "common/kernels/isa/decode_avx512_bf16.h"
#include "common/kernels/isa/vec_avx512.h"

namespace expertmesh {
namespace {
inline Vec dot_bf16(Vec acc, std::uint16_t const* w, std::uint32_t x) {
  __m512i const pairs = _mm512_loadu_si512(w);
  __m512i const both = _mm512_set1_epi32(static_cast<int>(x));
  return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh const&>(pairs), reinterpret_cast<__m512bh const&>(both))};
}
inline void store_bf16(std::uint16_t* p, Vec x) {
  __m256bh const rounded = _mm512_cvtneps_pbh(x.v);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i const&>(rounded));
}
}  // namespace
}  // namespace expertmesh

#include "common/kernels/isa/attend_impl.h"
#include "common/kernels/isa/gemm_bf16_impl.h"
#include "common/kernels/isa/gemm_coded_impl.h"

namespace expertmesh {
KernelTable const& avx512_bf16_kernels() {
  static KernelTable const table = [] {
    KernelTable t = avx512_vnni_kernels();
    t.gemm_bf16 = gemm<GemmBf16>;
    t.gemm_mxfp4 = gemm_coded<Mxfp4Codes>;
    t.gemm_fp8 = gemm_coded<Fp8Codes>;
    t.attend_bf16 = attend<std::uint16_t>;
    t.peak_bf16 = peak_bf16;
    return t;
  }();
  return table;
}
}  // namespace expertmesh
