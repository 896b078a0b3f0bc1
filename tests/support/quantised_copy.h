// A reference model with other weights in its linear modules, once quantised and once as the numbers that these are.
#pragma once
#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/model_copy.h"
#include "tests/support/stored_integers.h"

namespace expertmesh::test {

// How a linear module is stored; none: as it is.
using FormOfModule = std::function<std::optional<StoredIntegers>(std::string const& module)>;

// Writes tensors in place of all that a model.safetensors has.
inline void replace_tensors(ModelCopy const& copy, std::vector<RawTensor> const& tensors) {
  copy.edit_tensors("model.safetensors", [&](nlohmann::json& header, std::string& data) {
    header = nlohmann::json::object();
    data.clear();
    for (RawTensor const& tensor : tensors) {
      std::size_t const begin = data.size();
      data.append(reinterpret_cast<char const*>(tensor.bytes.data()), tensor.bytes.size());
      header[tensor.name] = {{"dtype", safetensors_name_of(tensor.dtype)},
                             {"shape", tensor.shape},
                             {"data_offsets", {begin, data.size()}}};
    }
  });
}

struct QuantisedCopy {
  // scale_type: f16 or bf16. Every matrix "<module>.weight" that form_of knows becomes random codes.
  QuantisedCopy(std::string const& golden_case, nlohmann::json const& quantization_config, FormOfModule const& form_of,
                DType scale_type)
      : quantised(golden_case), dequantised(golden_case) {
    quantised.edit_config([&](nlohmann::json& config) { config["quantization_config"] = quantization_config; });
    std::mt19937 random(7);
    std::vector<RawTensor> codes;
    std::vector<RawTensor> numbers;
    dequantised.edit_tensors("model.safetensors", [&](nlohmann::json& header, std::string& data) {
      for (auto const& [name, entry] : header.items()) {
        if (name == "__metadata__") continue;
        RawTensor tensor{name, *dtype_from_safetensors(entry.at("dtype").get<std::string>()), entry.at("shape"), {}};
        std::size_t const begin = entry.at("data_offsets")[0];
        std::size_t const end = entry.at("data_offsets")[1];
        auto const* bytes = reinterpret_cast<std::byte const*>(data.data());
        tensor.bytes.assign(bytes + begin, bytes + end);
        constexpr std::string_view kWeight = ".weight";
        std::string const module = name.ends_with(kWeight) ? name.substr(0, name.size() - kWeight.size()) : name;
        auto const form = tensor.shape.size() == 2 ? form_of(module) : std::nullopt;
        if (form) {
          IntegerMatrix const m =
              random_matrix(*form, tensor.shape[0], tensor.shape[1], random, form->bits == 4 ? -13 : -17);
          for (RawTensor& stored : stored_tensors(*form, module, m, scale_type)) codes.push_back(std::move(stored));
          tensor.dtype = DType::bf16;
          tensor.bytes.resize(2 * m.rows * m.k);
          for (std::size_t i = 0; i < m.rows * m.k; ++i) {
            bf16 const number = to_bf16(m.weight(i / m.k, i % m.k));
            std::memcpy(tensor.bytes.data() + 2 * i, &number, 2);
          }
          ++num_quantised;
          num_quantised_parameters += m.rows * m.k;
        } else {
          codes.push_back(tensor);
        }
        numbers.push_back(std::move(tensor));
      }
    });
    replace_tensors(quantised, codes);
    replace_tensors(dequantised, numbers);
  }

  ModelCopy quantised;
  ModelCopy dequantised;
  std::size_t num_quantised = 0;
  std::size_t num_quantised_parameters = 0;
};

}  // namespace expertmesh::test
