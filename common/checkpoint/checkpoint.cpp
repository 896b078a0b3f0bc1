// The Hugging Face checkpoint directory as a WeightSource.
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "common/base/error.h"
#include "common/checkpoint/safetensors.h"
#include "common/checkpoint/strict_json.h"
#include "common/checkpoint/weight_source.h"

namespace expertmesh {
namespace {

using Json = nlohmann::json;
constexpr char const* kSingle = "model.safetensors";
constexpr char const* kIndex = "model.safetensors.index.json";

std::string shape_text(std::span<std::size_t const> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? "," : "") + std::to_string(shape[i]);
  return text + "]";
}

std::string dtypes_of(TensorKind kind) {
  switch (kind) {
    case TensorKind::numbers:
      return "F32, BF16 or F16";
    case TensorKind::fp8:
      return "F8_E4M3";
    case TensorKind::bytes:
      return "U8";
    case TensorKind::words:
    case TensorKind::indices:
      return "I32";
    case TensorKind::int8:
      return "I8";
    case TensorKind::sizes:
      return "I64 or I32";
  }
  return {};
}

// The number that an element of numbers or sizes is.
double number_at(StoredTensor const& tensor, std::size_t index) {
  auto const read = [&](auto x) {
    std::memcpy(&x, tensor.bytes.data() + index * sizeof x, sizeof x);
    return static_cast<double>(x);
  };
  if (tensor.dtype == DType::i64) return read(std::int64_t{});
  return tensor.dtype == DType::i32 ? read(std::int32_t{}) : static_cast<double>(element(tensor, index));
}

// Empty, or what differs.
std::string differs(StoredTensor const& tensor, std::vector<std::size_t> const& values) {
  std::size_t const count = values.empty() ? 0 : tensor.bytes.size() / size_of(tensor.dtype);
  for (std::size_t i = 0; i < count; ++i) {
    std::size_t const expected = values[std::min(i, values.size() - 1)];
    if (double const is = number_at(tensor, i); is != static_cast<double>(expected))
      return "element " + std::to_string(i) + " is " + fmt::format("{}", is) + ", expected " + std::to_string(expected);
  }
  return {};
}

bool is_there(std::filesystem::path const& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

// tensor name -> shard file name
std::map<std::string, std::string> read_index(std::filesystem::path const& path) {
  Json const index = read_strict_json(path);
  auto const map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) throw ModelError(std::string(kIndex) + ": no object 'weight_map'");
  std::map<std::string, std::string> files;
  for (auto const& [tensor, file] : map->items()) {
    std::string const where = std::string(kIndex) + ": tensor " + in_quotes(tensor) + ": ";
    if (!file.is_string()) throw ModelError(where + "its file is not a string");
    auto const name = file.get<std::string>();
    if (std::filesystem::path(name).filename() != name || name.empty() || name == "." || name == ".." ||
        name.find('\0') != std::string::npos)
      throw ModelError(where + in_quotes(name) + " is not a file of the model directory");
    files.emplace(tensor, name);
  }
  return files;
}

class Checkpoint final : public WeightSource {
 public:
  explicit Checkpoint(std::filesystem::path const& dir) {
    if (is_there(dir / kIndex)) {
      contents_ = kIndex;
      open_shards(dir, read_index(dir / kIndex));
    } else if (is_there(dir / kSingle)) {
      contents_ = kSingle;
      open(dir / kSingle);
    } else {
      throw ModelError(dir.string() + ": neither " + kSingle + " nor " + kIndex + " is there");
    }
  }

  [[nodiscard]] bool holds(std::string_view name) const override { return tensors_.contains(name); }

  void verify(ExpectedTensors const& expected) const override {
    std::map<std::string_view, bool> known;
    for (auto const& tensor : expected.required) {
      known[tensor.name] = true;
      (void)load(tensor);
    }
    for (auto const& tensor : expected.optional) {
      known[tensor.name] = true;
      if (tensors_.contains(tensor.name)) (void)load(tensor);
    }
    auto const skipped = [&](std::string const& name) {
      return std::ranges::any_of(expected.skipped_prefixes,
                                 [&](std::string const& prefix) { return name.starts_with(prefix); });
    };
    for (auto const& [name, place] : tensors_)
      if (!known.contains(name) && !skipped(name))
        throw ModelError(place.first->name() + ": unexpected tensor " + in_quotes(name));
  }

 private:
  [[nodiscard]] StoredTensor read(TensorInfo const& tensor, std::optional<std::size_t> index) const override {
    auto const place = tensors_.find(tensor.name);
    if (place == tensors_.end())
      throw ModelError(std::string(contents_) + ": tensor " + in_quotes(tensor.name) + " is missing");
    auto const& [file, entry] = place->second;
    std::string const where = file->name() + ": tensor " + in_quotes(tensor.name) + ": ";
    if (entry->shape != tensor.shape)
      throw ModelError(where + "shape " + shape_text(entry->shape) + ", expected " + shape_text(tensor.shape));
    if (!is_of(entry->dtype, tensor.kind))
      throw ModelError(where + "dtype " + std::string(safetensors_name_of(entry->dtype)) + ", expected " +
                       dtypes_of(tensor.kind));
    StoredTensor out{.name = tensor.name,
                     .dtype = entry->dtype,
                     .shape = entry->shape,
                     .bytes = file->bytes_of(*entry),
                     .owned = {}};
    if (index) {
      std::size_t const entry_bytes = out.bytes.size() / out.shape.front();
      out.bytes = out.bytes.subspan(*index * entry_bytes, entry_bytes);
      out.shape.erase(out.shape.begin());
    } else if (std::string const problem = differs(out, tensor.values); !problem.empty()) {
      throw ModelError(where + problem);
    }
    return out;
  }

  // Index and shards must name the same tensors.
  void open_shards(std::filesystem::path const& dir, std::map<std::string, std::string> const& index) {
    std::map<std::string, SafetensorsFile const*> shards;
    for (auto const& [tensor, file] : index) {
      if (!shards.contains(file)) {
        if (!is_there(dir / file))
          throw ModelError(one_line(file) + ": missing shard, named by " + kIndex + " for tensor " + in_quotes(tensor));
        shards[file] = &open(dir / file);
      }
      if (!shards[file]->entries().contains(tensor))
        throw ModelError(one_line(file) + ": tensor " + in_quotes(tensor) + " is missing, though " + kIndex +
                         " puts it there");
    }
    for (auto const& [file, shard] : shards)
      for (auto const& [tensor, entry] : shard->entries()) {
        std::string const where = one_line(file) + ": tensor " + in_quotes(tensor);
        auto const place = index.find(tensor);
        if (place == index.end()) throw ModelError(where + " is unexpected: " + kIndex + " does not name it");
        if (place->second != file) throw ModelError(where + " is also in " + one_line(place->second));
      }
  }

  SafetensorsFile const& open(std::filesystem::path const& path) {
    auto const& file = *files_.emplace_back(std::make_unique<SafetensorsFile>(path));
    for (auto const& [name, entry] : file.entries()) tensors_.emplace(name, std::pair(&file, &entry));
    return file;
  }

  char const* contents_ = kSingle;  // the file that lists the tensors, for messages
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, std::pair<SafetensorsFile const*, SafetensorsEntry const*>, std::less<>> tensors_;
};

}  // namespace

std::vector<std::filesystem::path> checkpoint_files(std::filesystem::path const& model_dir) {
  if (is_there(model_dir / kIndex)) {
    std::set<std::filesystem::path> shards;
    for (auto const& [tensor, file] : read_index(model_dir / kIndex)) shards.insert(model_dir / file);
    return {shards.begin(), shards.end()};
  }
  if (is_there(model_dir / kSingle)) return {model_dir / kSingle};
  return {};
}

std::unique_ptr<WeightSource> open_checkpoint(std::filesystem::path const& model_dir) {
  return std::make_unique<Checkpoint>(model_dir);
}

}  // namespace expertmesh
