#include "coordinator/model/families/stored_weights.h"

#include <algorithm>
#include <string_view>
#include <utility>

namespace expertmesh {
namespace {

// Whether `pattern`, in which * stands for anything, matches the start of `name` up to a dot or the end.
bool begins_with(std::string_view name, std::string_view pattern) {
  std::size_t const star = pattern.find('*');
  std::string_view const literal = pattern.substr(0, star);
  if (!name.starts_with(literal)) return false;
  if (star == std::string_view::npos) return name.size() == literal.size() || name[literal.size()] == '.';
  for (std::size_t skip = literal.size(); skip <= name.size(); ++skip)
    if (begins_with(name.substr(skip), pattern.substr(star + 1))) return true;
  return false;
}

// Whether whole components of a dotted name are what the pattern says.
bool names_part_of(std::string_view pattern, std::string_view name) {
  while (!begins_with(name, pattern)) {
    std::size_t const dot = name.find('.');
    if (dot == std::string_view::npos) return false;
    name.remove_prefix(dot + 1);
  }
  return true;
}

}  // namespace

StoredWeights::StoredWeights(ConfigReader& config) {
  auto quantisation = config.object("quantization_config");
  if (!quantisation) return;
  std::string const method = quantisation->text("quant_method");
  if (method == "fp8") {
    storage_ = WeightStorage::fp8_blocks;
    if (std::string const format = quantisation->text_or("fmt", "e4m3"); format != "e4m3")
      quantisation->refuse("fmt", "8-bit floats of format '" + format + "' are not supported");
    if (std::string const scheme = quantisation->text_or("activation_scheme", "dynamic"); scheme != "dynamic")
      quantisation->refuse("activation_scheme", "'" + scheme + "' is not supported");
    auto const block = quantisation->indices("weight_block_size");
    if (block.size() != 2 || block[0] == 0 || block[1] == 0)
      quantisation->refuse("weight_block_size", "expected two positive numbers: rows and columns of a block");
    block_rows_ = block[0];
    block_columns_ = block[1];
    if (auto const scale = quantisation->text_or("scale_fmt", "ue8m0"); scale != "ue8m0" && scale != "float")
      quantisation->refuse("scale_fmt", "'" + scale + "' is not supported");
  } else if (method == "mxfp4") {
    storage_ = WeightStorage::mxfp4;
  } else {
    quantisation->refuse("quant_method", "quantisation by '" + method + "' is not supported");
  }
  for (auto const* field : {"modules_to_not_convert", "ignored_layers"})
    for (std::string& pattern : quantisation->texts(field)) kept_.push_back(std::move(pattern));
  quantisation->without_effect({"dequantize"});
  quantisation->finish();
}

bool StoredWeights::quantises(std::string const& module) const {
  return storage_ != WeightStorage::numbers &&
         std::ranges::none_of(kept_, [&](std::string const& pattern) { return names_part_of(pattern, module); });
}

WeightSlice StoredWeights::weight(std::string const& module) const {
  WeightSlice slice{module + ".weight"};
  if (storage_ == WeightStorage::fp8_blocks && quantises(module)) {
    slice.storage = storage_;
    slice.block_rows = block_rows_;
    slice.block_columns = block_columns_;
  }
  return slice;
}

}  // namespace expertmesh
