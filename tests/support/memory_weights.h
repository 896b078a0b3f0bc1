// Tensors in memory as a source of weights, as strict as a checkpoint.
#pragma once
#include <cstddef>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "common/base/error.h"
#include "common/checkpoint/weight_source.h"

namespace expertmesh::test {

class MemoryWeights final : public WeightSource {
 public:
  // Returns the bytes to fill, row-major.
  std::span<std::byte> add(std::string const& name, DType dtype, std::vector<std::size_t> shape) {
    StoredTensor& tensor = tensors_[name];
    tensor.name = name;
    tensor.dtype = dtype;
    std::size_t bytes = size_of(dtype);
    for (std::size_t const n : shape) bytes *= n;
    tensor.shape = std::move(shape);
    tensor.owned = AlignedBuffer<std::byte>(bytes);
    return tensor.owned.span();
  }
  [[nodiscard]] std::span<std::byte const> bytes(std::string const& name) const {
    return tensors_.at(name).owned.span();
  }
  void verify(ExpectedTensors const&) const override {}

  // (name, entry) of every read so far; entry: none for a whole tensor.
  using Read = std::pair<std::string, std::optional<std::size_t>>;
  [[nodiscard]] std::vector<Read> reads() const { return reads_; }

 private:
  StoredTensor read(TensorInfo const& wanted, std::optional<std::size_t> index) const override {
    std::lock_guard const lock(mutex_);
    auto const found = tensors_.find(wanted.name);
    if (found == tensors_.end()) throw ModelError("memory: tensor '" + wanted.name + "' is missing");
    StoredTensor const& stored = found->second;
    if (stored.shape != wanted.shape || !is_of(stored.dtype, wanted.kind))
      throw ModelError("memory: tensor '" + wanted.name + "' has another shape or dtype");
    reads_.emplace_back(wanted.name, index);
    StoredTensor out{
        .name = stored.name, .dtype = stored.dtype, .shape = stored.shape, .bytes = stored.owned.span(), .owned = {}};
    if (!index) return out;
    std::size_t const entry_bytes = out.bytes.size() / out.shape.front();
    out.bytes = out.bytes.subspan(*index * entry_bytes, entry_bytes);
    out.shape.erase(out.shape.begin());
    return out;
  }

  std::map<std::string, StoredTensor> tensors_;
  mutable std::mutex mutex_;
  mutable std::vector<Read> reads_;
};

}  // namespace expertmesh::test
