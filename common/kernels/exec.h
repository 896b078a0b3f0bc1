// What a kernel runs on: an instruction set chosen once at start-up and the thread pool, or a device.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "common/base/thread_pool.h"

namespace expertmesh {

// Implementations of every op. Part of the numerics profile: results with fp32, int8 and int4 weights agree bitwise
// between them. With bf16 weights they do, too (one fused multiply-add a product, in the order of K), but for
// avx512_bf16, where vdpbf16ps adds the products of a pair in another order, and amx, where tdpbf16ps adds the even and
// the odd products of 32 k before it adds both to the sum; these two take denormals for 0. So does attention over a
// bfloat16 KV cache on both, by vdpbf16ps.
enum class Isa : std::uint8_t {
  scalar,
  neon,      // 64-bit ARM
  neon_dot,  // and sums of four products of bytes
  avx2,
  avx_vnni,  // and sums of four products of bytes
  avx512,    // F, BW, VL and DQ
  avx512_vnni,
  avx512_bf16,  // and VNNI
  amx           // and AVX-512 BF16; has not been run, so only where it is asked for
};
// Slowest first.
inline constexpr std::array kIsas = {Isa::scalar, Isa::neon,        Isa::neon_dot,    Isa::avx2, Isa::avx_vnni,
                                     Isa::avx512, Isa::avx512_vnni, Isa::avx512_bf16, Isa::amx};

std::string_view name_of(Isa isa);  // as above
std::optional<Isa> isa_from_name(std::string_view name);
std::vector<Isa> runnable_isas();  // on this processor, slowest first
Isa best_isa();                    // the last of them, but for amx

// Sizes the scratch of the ops for the largest call; a larger one is a broken invariant.
struct ExecLimits {
  std::size_t max_rows = 0;      // M of linear(), rows of grouped_ffn()
  std::size_t max_columns = 0;   // largest K of any weight, and 2F of any FFN
  std::size_t max_head_dim = 0;  // of keys and values in paged_attention()
  // Of an Exec with a device:
  std::size_t max_heads = 0;         // of paged_attention()
  std::size_t max_positions = 0;     // that one token of paged_attention() attends to, whole blocks
  std::size_t max_hidden = 0;        // H of rows between host and device: to_wire(), combine(), grouped_ffn()
  std::size_t max_intermediate = 0;  // F of grouped_ffn() and Device::run_experts()
};

class Device;
struct KernelTable;  // the ISA's inner loops, private to common/kernels

class Exec {
 public:
  // device: runs the ops in place of this processor; must outlive this. Then views and weights are in its memory,
  // except where an op's comment says "host". Null: none.
  Exec(Isa isa, ThreadPool& pool, ExecLimits limits, Device* device = nullptr);
  ~Exec();
  // Bytes that one with these limits takes of its device, besides what Device::reserve() does.
  [[nodiscard]] static std::size_t device_bytes(ExecLimits const& limits);
  Exec(Exec const&) = delete;
  Exec& operator=(Exec const&) = delete;

  [[nodiscard]] Isa isa() const { return isa_; }
  [[nodiscard]] ThreadPool& pool() const { return pool_; }
  [[nodiscard]] KernelTable const& table() const { return *table_; }
  [[nodiscard]] Device* device() const { return device_; }
  [[nodiscard]] ExecLimits const& limits() const { return limits_; }
  struct Scratch;  // private to common/kernels
  [[nodiscard]] Scratch& scratch() const { return *scratch_; }

 private:
  Isa isa_;
  ThreadPool& pool_;
  ExecLimits limits_;
  Device* device_;
  KernelTable const* table_;
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace expertmesh
