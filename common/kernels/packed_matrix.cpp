#include "common/kernels/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/base/bf16.h"
#include "common/base/check.h"
#include "common/kernels/device_rows.h"
#include "common/kernels/fp8_panels.h"
#include "common/kernels/kernel_table.h"
#include "common/kernels/mxfp4_panels.h"
#include "common/kernels/panel_packing.h"

namespace expertmesh {
namespace {

constexpr std::size_t kUploadBytes = std::size_t{1} << 20;

bool is_fp8(WeightFormat const& format) {
  return format.group_size != 0 && format.group_size % kFp8GroupStep == 0 && format == fp8_weights(format.group_size);
}

template <class From>
float float_of(From x) {
  if constexpr (std::is_same_v<From, float>)
    return x;
  else
    return to_float(x);
}

// Column `lane` of a panel, from a row's codes and scales.
void place_mxfp4_row(std::byte const* codes, std::byte const* scales, std::size_t lane, std::size_t k,
                     std::byte* panel) {
  for (std::size_t begin = 0; begin < k; begin += kMxfp4GroupK, panel += kMxfp4GroupBytes) {
    panel[lane] = scales[begin / kMxfp4GroupK];
    auto* words = reinterpret_cast<std::uint16_t*>(panel + kMxfp4ScaleBytes) + 2 * lane;
    for (std::size_t step = 0; step < kMxfp4GroupK / kMxfp4StepK; ++step, words += 2 * kPanelColumns) {
      unsigned even = 0;
      unsigned odd = 0;
      for (std::size_t q = 0; q < kMxfp4StepK / 2; ++q, ++codes) {
        auto const both = std::to_integer<unsigned>(*codes);
        even |= (both & 15U) << 4 * q;
        odd |= both >> 4 << 4 * q;
      }
      words[0] = static_cast<std::uint16_t>(even);
      words[1] = static_cast<std::uint16_t>(odd);
    }
  }
}

void place_fp8_row(std::byte const* codes, std::byte const* scales, std::size_t group, std::size_t lane, std::size_t k,
                   std::byte* panel) {
  constexpr std::byte kSign{0x80};
  for (std::size_t begin = 0; begin < k; begin += group, scales += sizeof(std::uint32_t)) {
    std::uint32_t bits;
    std::memcpy(&bits, scales, sizeof bits);
    std::byte const flip = (bits & kFp8Mark) != 0 ? kSign : std::byte{};
    bits &= ~kFp8Mark;
    bool care = bits != 0 && (bits < kFp8LeastPlainScale || bits >= kFp8PlainScalesEnd);
    std::byte* const out = panel + kFp8ScaleBytes;
    std::size_t const count = std::min(group, k - begin);
    for (std::size_t i = 0; i < count; ++i, ++codes) {
      care = care || (*codes | kSign) == std::byte{0xff};
      out[i / kFp8StepK * kFp8StepBytes + fp8_place(i % kFp8StepK / 2, 2 * lane + i % 2)] = *codes ^ flip;
    }
    if (care) bits |= kFp8Mark;
    std::memcpy(panel + lane * sizeof bits, &bits, sizeof bits);
    panel += kFp8ScaleBytes + (count + kFp8StepK - 1) / kFp8StepK * kFp8StepBytes;
  }
}

// As the kernels of a device read them.
template <class From>
void lay_out_rows(WeightFormat const& format, std::byte const* rows, std::size_t count, std::size_t k, std::byte* out) {
  std::size_t const stride = device_row(format.storage, k).bytes / size_of(format.storage);
  bool const as_stored = std::is_same_v<From, float>  ? format.storage == DType::f32
                         : std::is_same_v<From, bf16> ? format.storage == DType::bf16
                                                      : false;
  if (as_stored) {
    for (std::size_t i = 0; i < count; ++i)
      std::memcpy(out + i * stride * sizeof(From), rows + i * k * sizeof(From), k * sizeof(From));
    return;
  }
  for (std::size_t i = 0; i < count; ++i)
    for (std::size_t j = 0; j < k; ++j) {
      From x;
      std::memcpy(&x, rows + (i * k + j) * sizeof(From), sizeof(From));
      if (format.storage == DType::f32)
        reinterpret_cast<float*>(out)[i * stride + j] = float_of(x);
      else
        reinterpret_cast<bf16*>(out)[i * stride + j] = to_bf16(float_of(x));
    }
}

// Rows on their way to a device, a part at a time so that it stays in the cache. lay_out(first, count, out): writes the
// same bytes of each row, where there are zeros behind and between them.
template <class LayOut>
void upload_rows(DeviceMemory& device, std::size_t num_rows, std::size_t row_bytes, std::byte* to,
                 LayOut const& lay_out) {
  std::size_t const at_once = std::clamp<std::size_t>(kUploadBytes / row_bytes, 1, std::max<std::size_t>(num_rows, 1));
  std::vector<std::byte> part(at_once * row_bytes);
  for (std::size_t begin = 0; begin < num_rows; begin += at_once) {
    std::size_t const count = std::min(at_once, num_rows - begin);
    lay_out(begin, count, part.data());
    device.upload(to + begin * row_bytes, part.data(), count * row_bytes);
  }
}

}  // namespace

std::size_t packed_bytes(WeightFormat const& format, std::size_t n, std::size_t k) {
  return (n + kPanelColumns - 1) / kPanelColumns * panel_bytes(format, k);
}

CodedRowBytes coded_row_bytes(WeightFormat const& format, std::size_t k) {
  if (format.storage == DType::f4_e2m1) return {.codes = k / 2, .scales = k / kMxfp4GroupK};
  return {.codes = k, .scales = fp8_groups(k, format.group_size) * sizeof(float)};
}

std::size_t device_weight_bytes(WeightFormat const& format, std::size_t n, std::size_t k) {
  return n * device_row(format.storage, k).bytes;
}

PackedMatrix::PackedMatrix(WeightFormat format, std::size_t n, std::size_t k, WeightHome const& home)
    : format_(format),
      n_(n),
      k_(k),
      device_(home.device),
      data_(device_ ? device_weight_bytes(format, n, k) : packed_bytes(format, n, k), device_, Lifetime::lasting) {
  EM_CHECK(device_ ? device_multiplies(format, k)
                   : format == kFloat32Weights || format == kBfloat16Weights || format == kInt8Weights ||
                         format == kInt4Weights || (format == kMxfp4Weights && k % kMxfp4GroupK == 0) || is_fp8(format),
           "weight format with storage " << name_of(format.storage) << " has no kernel for K " << k);
  if (!device_ && home.threads && pages_come_when_written(data_.size_bytes()))
    by_regions_ = place_fresh_pages(data_.span(), *home.threads);
  if (device_ || format.storage != DType::f4_e2m1) return;
  // The scale of columns that are padding: one that needs no care.
  for (std::size_t group = 0; group < data_.size(); group += kMxfp4GroupBytes)
    std::fill_n(data_.data() + group, kMxfp4ScaleBytes, std::byte{kMxfp4One});
}

PackedMatrix::PackedMatrix(WeightFormat format, std::size_t n, std::size_t k, std::span<std::byte const> kept,
                           std::shared_ptr<void const> keeper)
    : format_(format), n_(n), k_(k), kept_(kept), keeper_(std::move(keeper)) {
  EM_CHECK(keeper_ != nullptr && kept.size() == packed_bytes(format, n, k), kept.size() << " bytes");
}

PackedMatrix PackedMatrix::copy_of(WeightFormat format, std::size_t n, std::size_t k, std::span<std::byte const> kept,
                                   WeightHome const& home) {
  PackedMatrix out(format, n, k, home);
  EM_CHECK(!home.device && kept.size() == out.data_.size(), kept.size() << " bytes");
  std::ranges::copy(kept, out.data_.data());
  return out;
}

PackedMatrix PackedMatrix::copy_to_host() const {
  EM_CHECK(device_ != nullptr, "on the host already");
  PackedMatrix out(format_, n_, k_);
  if (data_.empty()) return out;
  std::vector<std::byte> rows(data_.size());
  device_->download(rows.data(), data_.data(), rows.size());
  std::size_t const row_bytes = device_row(format_.storage, k_).bytes;
  bool const coded = from_codes(format_);
  CodedRowBytes const coded_row = coded ? coded_row_bytes(format_, k_) : CodedRowBytes{};
  std::vector<std::byte> codes(coded_row.codes);
  std::vector<std::byte> scales(coded_row.scales);
  for (std::size_t n = 0; n < n_; ++n) {
    std::byte const* const row = rows.data() + n * row_bytes;
    if (coded) {
      read_codes(format_, k_, row, codes.data(), scales.data());
      out.set_codes(n, 1, codes.data(), scales.data());
    } else {
      out.set_rows(n, 1, format_.storage, row);
    }
  }
  return out;
}

PackedMatrix PackedMatrix::widened() const {
  EM_CHECK(device_ == nullptr, "on a device");
  PackedMatrix out(kBfloat16Weights, n_, k_);
  std::size_t const bytes = panel_bytes(format_, k_);
  for (std::size_t panel = 0; panel * kPanelColumns < n_; ++panel) {
    std::byte const* const from = data() + panel * bytes;
    auto* const to = reinterpret_cast<std::uint16_t*>(out.data_.data() + panel * panel_bytes(out.format_, k_));
    if (format_.storage == DType::f4_e2m1) {
      for (std::size_t k = 0; k < k_; k += kMxfp4GroupK)
        for (std::size_t v = 0; v < kPanelColumns / kLanes; ++v)
          decode_mxfp4_exactly(mxfp4_group(from + k / kMxfp4GroupK * kMxfp4GroupBytes, v),
                               to + k * kPanelColumns + v * 2 * kLanes);
    } else {
      EM_CHECK(is_fp8(format_), "weights of " << name_of(format_.storage));
      // Steps, of which the last may be half beyond the panel's end.
      std::uint16_t step[kFp8StepBytes];
      for (std::size_t k = 0; k < k_; k += kFp8StepK) {
        std::size_t const count = std::min(kFp8StepK, k_ - k);
        for (std::size_t v = 0; v < kPanelColumns / kLanes; ++v) {
          decode_fp8_exactly(fp8_steps(from, format_.group_size, v, k, count), step + v * 2 * kLanes);
          clear_padding(count, step + v * 2 * kLanes);
        }
        std::copy_n(step, (count + 1) / 2 * 2 * kPanelColumns, to + k * kPanelColumns);
      }
    }
  }
  return out;
}

void PackedMatrix::set_codes(std::size_t first_row, std::size_t num_rows, std::byte const* codes,
                             std::byte const* scales) {
  EM_CHECK(keeper_ == nullptr, "its bytes are somebody else's");
  EM_CHECK(first_row + num_rows <= n_, "rows " << first_row << " to " << first_row + num_rows << " of " << n_);
  bool const mxfp4 = format_.storage == DType::f4_e2m1;
  EM_CHECK(mxfp4 || is_fp8(format_), "codes for weights of " << name_of(format_.storage));
  CodedRowBytes const row = coded_row_bytes(format_, k_);
  if (device_) {
    std::size_t const row_bytes = device_row(format_.storage, k_).bytes;
    return upload_rows(*device_, num_rows, row_bytes, data_.data() + first_row * row_bytes,
                       [&](std::size_t begin, std::size_t count, std::byte* out) {
                         for (std::size_t r = begin; r < begin + count; ++r, out += row_bytes)
                           lay_out_codes(format_, k_, codes + r * row.codes, scales + r * row.scales, out);
                       });
  }
  for (std::size_t r = 0; r < num_rows; ++r, codes += row.codes, scales += row.scales) {
    std::size_t const lane = (first_row + r) % kPanelColumns;
    std::byte* const panel = data_.data() + (first_row + r) / kPanelColumns * panel_bytes(format_, k_);
    if (mxfp4)
      place_mxfp4_row(codes, scales, lane, k_, panel);
    else
      place_fp8_row(codes, scales, format_.group_size, lane, k_, panel);
  }
}

void PackedMatrix::set_rows(std::size_t first_row, std::size_t num_rows, DType type, std::byte const* rows) {
  EM_CHECK(keeper_ == nullptr, "its bytes are somebody else's");
  EM_CHECK(first_row + num_rows <= n_, "rows " << first_row << " to " << first_row + num_rows << " of " << n_);
  EM_CHECK(!from_codes(format_), "numbers for weights of " << name_of(format_.storage));
  if (!device_) {
    std::size_t const end = first_row + num_rows;
    for (std::size_t row = first_row; row < end;) {
      std::size_t const panel = row / kPanelColumns;
      std::size_t const count = std::min(end, (panel + 1) * kPanelColumns) - row;
      pack_panel(format_, {.type = type, .data = rows, .first = row % kPanelColumns, .count = count}, k_,
                 data_.data() + panel * panel_bytes(format_, k_));
      rows += count * k_ * size_of(type);
      row += count;
    }
    return;
  }
  auto const each_type = [&](auto place) {
    switch (type) {
      case DType::f32:
        return place(float{});
      case DType::bf16:
        return place(bf16{});
      case DType::f16:
        return place(fp16{});
      default:
        EM_CHECK(false, "cannot pack " << name_of(type));
    }
  };
  std::size_t const row_bytes = device_row(format_.storage, k_).bytes;
  upload_rows(*device_, num_rows, row_bytes, data_.data() + first_row * row_bytes,
              [&](std::size_t begin, std::size_t count, std::byte* out) {
                each_type([&](auto from) {
                  lay_out_rows<decltype(from)>(format_, rows + begin * k_ * sizeof from, count, k_, out);
                });
              });
}

}  // namespace expertmesh
