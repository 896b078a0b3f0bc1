// Where weights come from: a mapped Hugging Face checkpoint, or deterministic random numbers for a bare config.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/aligned_buffer.h"
#include "common/tensor/dtype.h"

namespace expertmesh {

struct Fingerprint;
class PackedCache;

// A tensor as the checkpoint stores it, or one entry of its first dimension; row-major. `bytes` stays valid as long as
// this object and its source live.
struct StoredTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::size_t> shape;    // of `bytes`
  std::span<std::byte const> bytes;  // a view of the mapped file, or of `owned`
  AlignedBuffer<std::byte> owned;    // filled by sources that have no mapped file
};

// What a tensor may be stored as.
enum class TensorKind : std::uint8_t {
  numbers,  // f32, bf16 or f16
  fp8,      // f8_e4m3
  bytes,    // u8
  words,    // i32, codes packed in it
  int8,     // i8
  indices,  // i32, of groups
  sizes,    // i64 or i32
};
bool is_of(DType dtype, TensorKind kind);

struct TensorInfo {
  std::string name;
  std::vector<std::size_t> shape;
  TensorKind kind = TensorKind::numbers;
  std::vector<std::size_t> values{};  // that numbers or sizes have to be, the last one repeated; empty: any
  float magnitude = 0;  // about what numbers should be where a source makes them up; 0: as name and shape tell
  bool operator==(TensorInfo const&) const = default;
};

// What a checkpoint has to hold.
struct ExpectedTensors {
  std::vector<TensorInfo> required;
  std::vector<TensorInfo> optional;           // may be there without being used
  std::vector<std::string> skipped_prefixes;  // tensors whose names begin so may be there, whatever they are
};

// All of it is thread-safe.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // A tensor, which must have exactly this shape and a dtype of this kind. Only its own byte range of the file is
  // touched. Throws ModelError naming file, tensor and what differs.
  [[nodiscard]] StoredTensor load(TensorInfo const& tensor) const { return counted(read(tensor, std::nullopt)); }
  [[nodiscard]] StoredTensor load(std::string_view name, std::span<std::size_t const> shape) const;  // numbers
  // Entry `index` of a tensor's first dimension alone: of shape[1:], and its bytes are all that is touched or sent.
  [[nodiscard]] StoredTensor load_entry(TensorInfo const& tensor, std::size_t index) const;
  // Whether the checkpoint has a tensor of this name. Sources that make tensors up, or get them from elsewhere, do not
  // tell: false.
  [[nodiscard]] virtual bool holds(std::string_view /*name*/) const { return false; }
  // Throws ModelError unless the source holds exactly these tensors: names a missing, an unexpected or a misshapen one.
  virtual void verify(ExpectedTensors const& expected) const = 0;
  // Where experts are kept as they were packed; null: nowhere.
  [[nodiscard]] virtual PackedCache* packed_cache() const { return nullptr; }
  // Of all tensors and entries that were loaded so far.
  [[nodiscard]] std::size_t bytes_loaded() const { return bytes_loaded_.load(std::memory_order_relaxed); }

 private:
  StoredTensor counted(StoredTensor&& tensor) const {
    bytes_loaded_.fetch_add(tensor.bytes.size(), std::memory_order_relaxed);
    return std::move(tensor);
  }
  virtual StoredTensor read(TensorInfo const& tensor, std::optional<std::size_t> index) const = 0;

  mutable std::atomic<std::size_t> bytes_loaded_ = 0;
};

// The same weights, with a cache of what they were packed to in DIR/<of this configuration and format>.
std::unique_ptr<WeightSource> with_packed_cache(std::unique_ptr<WeightSource> source, std::filesystem::path const& dir,
                                                Fingerprint const& checkpoint, DType storage);

enum class LoadFormat : std::uint8_t { automatic, dummy };

// The files of a checkpoint: the shards model.safetensors.index.json names, whether they exist or not;
// else model.safetensors; none if neither is there. Throws ModelError for a bad index.
std::vector<std::filesystem::path> checkpoint_files(std::filesystem::path const& model_dir);

// Maps model.safetensors, or the shards named by model.safetensors.index.json. Reads and checks headers only. Throws
// ModelError (missing shard, truncated file, overlapping or oversized header, unknown dtype, …) or FileError.
std::unique_ptr<WeightSource> open_checkpoint(std::filesystem::path const& model_dir);

// Weights that are a pure function of (seed, tensor name, element index). Numbers are bf16: matrices [N,K] normal with
// standard deviation 1/sqrt(K) or of the magnitude asked for, vectors 1 + small noise, biases (by their name) small
// noise. Quantised weights (fp8 codes, bytes, and scales by their names: see weight_slice.h) are finite and come out
// with about that deviation too. verify() accepts anything.
std::unique_ptr<WeightSource> make_dummy_weights(std::uint64_t seed);

// float value of element i of a stored f32, bf16 or f16 tensor, for tests and small tensors.
float element(StoredTensor const& tensor, std::size_t index);

// All elements as float32.
std::vector<float> to_floats(StoredTensor const& tensor);

}  // namespace expertmesh
