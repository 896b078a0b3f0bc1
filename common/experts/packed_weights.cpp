#include "common/experts/packed_weights.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "common/base/error.h"
#include "common/base/log.h"
#include "common/kernels/device_rows.h"

namespace expertmesh {

namespace {

// pack_part(first, last) for parts of so many rows.
template <class PackPart>
void share_rows(std::size_t count, PackingPlace const& place, PackPart pack_part) {
  if (place.pool && !place.home.device)
    place.pool->parallel_for(count, [&](std::size_t first, std::size_t last, std::size_t) { pack_part(first, last); });
  else
    pack_part(std::size_t{0}, count);
}

// The weight [N,K] of a part, from row `begin` of w.
void pack(WeightReader& reader, LinearPart const& part, std::size_t begin, PackingPlace const& place, PackedMatrix& w) {
  if (from_codes(w.format())) {
    CodedRowBytes const row = coded_row_bytes(w.format(), w.k());
    return reader.read_codes(part.weight, part.rows, w.k(), [&](WeightCodes const& rows) {
      share_rows(rows.count, place, [&](std::size_t first, std::size_t last) {
        w.set_codes(begin + rows.first + first, last - first, rows.codes + first * row.codes,
                    rows.scales + first * row.scales);
      });
    });
  }
  reader.read(part.weight, part.rows, w.k(), [&](WeightRows const& rows) {
    share_rows(rows.count, place, [&](std::size_t first, std::size_t last) {
      w.set_rows(begin + rows.first + first, last - first, rows.type, rows.data + first * w.k() * size_of(rows.type));
    });
  });
}

std::size_t total_rows(std::span<LinearPart const> parts) {
  std::size_t total = 0;
  for (LinearPart const& part : parts) total += part.rows;
  return total;
}

std::size_t bias_rows(std::span<LinearPart const> parts) {
  bool const biased = std::ranges::any_of(parts, [](LinearPart const& part) { return part.bias.has_value(); });
  return biased ? total_rows(parts) : 0;
}

std::size_t weight_bytes(WeightFormat const& packed, std::size_t rows, std::size_t k, Holder holder) {
  return holder == Holder::device ? device_weight_bytes(packed, rows, k) : packed_bytes(packed, rows, k);
}

// Says so where codes become numbers without being asked to.
void log_widened(WeightFormat const& format, WeightFormat const& packed, LinearPart const& part, Holder holder) {
  bool const codes = part.weight.storage == WeightStorage::fp8_blocks || part.weight.storage == WeightStorage::mxfp4;
  if (!codes || format != kBfloat16Weights || from_codes(packed)) return;
  static std::once_flag said[2];
  std::call_once(said[holder == Holder::device ? 1 : 0], [&] {
    spdlog::warn(
        "'{}', with scales of {} numbers, and maybe others are widened to bfloat16: {} multiply FP8 with scales of {} "
        "numbers or a multiple, and only parts of a matrix that are alike",
        part.weight.name, scale_width(part.weight), holder == Holder::device ? "GPUs" : "processors",
        holder == Holder::device ? kDeviceChunk : kFp8GroupStep);
  });
}

// The two linears of an FFN.
struct FfnParts {
  std::vector<LinearPart> gate_up;
  LinearPart down;
};
FfnParts parts_of(FfnTensors const& t, FfnShape const& shape) {
  FfnParts parts{.gate_up = {}, .down = {t.down, shape.hidden, t.down_bias}};
  if (t.gate) parts.gate_up.push_back({*t.gate, shape.intermediate, t.gate_bias});
  parts.gate_up.push_back({t.up, shape.intermediate, t.up_bias});
  return parts;
}

}  // namespace

WeightFormat packed_format(WeightFormat const& format, std::span<LinearPart const> parts, Holder holder) {
  if (format != kBfloat16Weights || parts.empty()) return format;
  WeightSlice const& first = parts.front().weight;
  if (first.storage != WeightStorage::fp8_blocks && first.storage != WeightStorage::mxfp4) return format;
  bool const alike = std::ranges::all_of(parts, [&](LinearPart const& part) {
    return part.weight.storage == first.storage && scale_width(part.weight) == scale_width(first);
  });
  if (!alike) return format;
  if (first.storage == WeightStorage::mxfp4) return kMxfp4Weights;
  std::size_t const group = scale_width(first);
  std::size_t const step = holder == Holder::device ? kDeviceChunk : kFp8GroupStep;
  return group != 0 && group % step == 0 ? fp8_weights(group) : format;
}

std::array<WeightFormat, 2> packed_formats(WeightFormat const& format, FfnTensors const& tensors, FfnShape const& shape,
                                           Holder holder) {
  FfnParts const parts = parts_of(tensors, shape);
  return {packed_format(format, parts.gate_up, holder), packed_format(format, {&parts.down, 1}, holder)};
}

std::size_t packed_linear_bytes(WeightFormat const& format, std::span<LinearPart const> parts, std::size_t k,
                                Holder holder) {
  std::size_t const rows = total_rows(parts);
  return weight_bytes(packed_format(format, parts, holder), rows, k, holder) + bias_rows(parts) * sizeof(float);
}

PackedLinear load_linear(WeightReader& reader, WeightFormat const& format, std::span<LinearPart const> parts,
                         std::size_t k, PackingPlace const& place) {
  for (LinearPart const& part : parts)
    if (std::string const problem = problem_of(part.weight, part.rows, k); !problem.empty())
      throw ModelError("tensor '" + part.weight.name + "': " + problem);
  Holder const holder = place.home.device ? Holder::device : Holder::processor;
  WeightFormat const packed = packed_format(format, parts, holder);
  for (LinearPart const& part : parts) log_widened(format, packed, part, holder);
  PackedLinear out{.w = PackedMatrix(packed, total_rows(parts), k, place.home), .bias = {}};
  std::vector<float> bias(bias_rows(parts));
  std::size_t row = 0;
  for (LinearPart const& part : parts) {
    pack(reader, part, row, place, out.w);
    if (part.bias)
      std::ranges::copy(reader.read(*part.bias, part.rows), bias.begin() + static_cast<std::ptrdiff_t>(row));
    row += part.rows;
  }
  out.bias = AlignedBuffer<float>(std::span<float const>(bias), place.home.device);
  return out;
}

FfnWeights load_ffn(WeightReader& reader, WeightFormat const& format, FfnTensors const& t, FfnShape const& shape,
                    ActivationSpec const& activation, PackingPlace const& place) {
  if (auto const problem = problem_of(activation, t.gate.has_value()); !problem.empty())
    throw ModelError("the FFN of tensor '" + t.up.name + "': " + problem);
  FfnParts const parts = parts_of(t, shape);
  return {.gate_up = load_linear(reader, format, parts.gate_up, shape.hidden, place),
          .down = load_linear(reader, format, {&parts.down, 1}, shape.intermediate, place),
          .activation = activation};
}

std::size_t packed_ffn_bytes(WeightFormat const& format, FfnTensors const& t, FfnShape const& shape, Holder holder) {
  FfnParts const parts = parts_of(t, shape);
  return packed_linear_bytes(format, parts.gate_up, shape.hidden, holder) +
         packed_linear_bytes(format, {&parts.down, 1}, shape.intermediate, holder);
}

FfnBytes bytes_of(FfnWeights const& ffn) {
  return {std::span(ffn.gate_up.w.data(), ffn.gate_up.w.size_bytes()), std::as_bytes(ffn.gate_up.bias.span()),
          std::span(ffn.down.w.data(), ffn.down.w.size_bytes()), std::as_bytes(ffn.down.bias.span())};
}

std::array<std::size_t, 4> ffn_byte_counts(WeightFormat const& format, FfnTensors const& t, FfnShape const& shape,
                                           Holder holder) {
  FfnParts const parts = parts_of(t, shape);
  std::span<LinearPart const> const down(&parts.down, 1);
  auto const weights = [&](std::span<LinearPart const> linear, std::size_t k) {
    return weight_bytes(packed_format(format, linear, holder), total_rows(linear), k, holder);
  };
  return {weights(parts.gate_up, shape.hidden), bias_rows(parts.gate_up) * sizeof(float),
          weights(down, shape.intermediate), bias_rows(down) * sizeof(float)};
}

FfnWeights ffn_of(FfnBytes const& bytes, std::shared_ptr<void const> const& keeper, WeightFormat const& format,
                  FfnTensors const& t, FfnShape const& shape, ActivationSpec const& activation,
                  WeightHome const& home) {
  FfnParts const parts = parts_of(t, shape);
  bool const spread = home.threads && home.threads->nodes().size() > 1;
  auto const linear = [&](std::span<LinearPart const> of, std::size_t k, std::size_t first) {
    WeightFormat const packed = packed_format(format, of, Holder::processor);
    PackedLinear out{.w = spread ? PackedMatrix::copy_of(packed, total_rows(of), k, bytes[first], home)
                                 : PackedMatrix(packed, total_rows(of), k, bytes[first], keeper),
                     .bias = AlignedBuffer<float>(bias_rows(of))};
    if (!out.bias.empty()) std::memcpy(out.bias.data(), bytes[first + 1].data(), bytes[first + 1].size());
    return out;
  };
  return {.gate_up = linear(parts.gate_up, shape.hidden, 0),
          .down = linear({&parts.down, 1}, shape.intermediate, 2),
          .activation = activation};
}

}  // namespace expertmesh
