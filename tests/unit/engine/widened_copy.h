// A checkpoint whose weights are FP8 or MXFP4, with their bfloat16 numbers instead.
#pragma once
#include "common/base/bf16.h"
#include "common/checkpoint/weight_reader.h"
#include "tests/support/model_copy.h"
#include "tests/unit/engine/golden_rig.h"

namespace expertmesh::test {

// The numbers of a tensor, where the checkpoint has that of this name, or codes for it: row-major, as `info` wants it.
inline std::vector<bf16> numbers_of(WeightSource const& source, TensorInfo const& info) {
  std::vector<bf16> out;
  bool const fp8 = source.holds(info.name + "_scale_inv");
  bool const mxfp4 = source.holds(info.name + "_blocks");
  if (!fp8 && !mxfp4) {
    for (float const x : to_floats(source.load(info))) out.push_back(to_bf16(x));
    return out;
  }
  WeightReader reader(source);
  std::size_t const stack = mxfp4 ? info.shape[0] : 1;
  std::size_t const n = info.shape[mxfp4 ? 2 : 0];  // MXFP4 lies across
  std::size_t const k = info.shape[1];
  for (std::size_t i = 0; i < stack; ++i) {
    WeightSlice const slice{.name = info.name,
                            .stack = mxfp4 ? stack : 0,
                            .index = i,
                            .storage = mxfp4 ? WeightStorage::mxfp4 : WeightStorage::fp8_blocks};
    std::vector<bf16> matrix(n * k);
    reader.read(slice, n, k, [&](WeightRows const& rows) {
      for (std::size_t r = 0; r < rows.count; ++r)
        for (std::size_t j = 0; j < k; ++j) {
          bf16 const x = to_bf16(reinterpret_cast<float const*>(rows.data)[r * k + j]);
          matrix[mxfp4 ? j * n + rows.first + r : (rows.first + r) * k + j] = x;
        }
    });
    out.insert(out.end(), matrix.begin(), matrix.end());
  }
  return out;
}

class WidenedCopy : public ModelCopy {
 public:
  explicit WidenedCopy(std::string const& golden_case) : ModelCopy(golden_case) {
    auto const source = open_checkpoint(ModelCopy::source(golden_case));
    edit_config([](nlohmann::json& config) { config.erase("quantization_config"); });
    nlohmann::json header;
    std::string data;
    for (TensorInfo const& info : expected_tensors(read_model_spec(path(), {})).required) {
      auto const numbers = numbers_of(*source, info);
      std::size_t const begin = data.size();
      data.append(reinterpret_cast<char const*>(numbers.data()), numbers.size() * sizeof(bf16));
      header[info.name] = {{"dtype", "BF16"}, {"shape", info.shape}, {"data_offsets", {begin, data.size()}}};
    }
    write_file(path() / "model.safetensors", safetensors_bytes(header.dump(), data));
  }
};

}  // namespace expertmesh::test
