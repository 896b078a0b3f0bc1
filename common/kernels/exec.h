// What a kernel runs on: an instruction set chosen once at start-up and the thread pool, or a device.
#pragma once
#include <cstddef>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "common/base/thread_pool.h"

namespace expertmesh {

// Implementations of every op. Part of the numerics profile: fp32 and int8 results agree bitwise between them, bf16
// ones need not.
enum class Isa : std::uint8_t { scalar, avx2, avx512_bf16 };

std::string_view name_of(Isa isa);  // "scalar", "avx2", "avx512_bf16"
std::optional<Isa> isa_from_name(std::string_view name);
std::vector<Isa> runnable_isas();  // on this processor, slowest first
Isa best_isa();

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
