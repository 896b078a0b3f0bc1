// A weight [N,K] in the layout the GEMMs read: panels of 32 output columns, zero-padded.
//   f32:  [ceil(N/32)][K][32]          bf16: [ceil(N/32)][ceil(K/2)][32][2]  (feeds vdpbf16ps)
//   int8, int4: see int8_panels.h, int4_panels.h (feed vpdpbusd); not on a device
//   MXFP4, FP8: see mxfp4_panels.h, fp8_panels.h
// On a device: rows, see device_rows.h.
// Packing is deterministic: the same numbers give the same bytes.
#pragma once
#include <cstddef>
#include <memory>
#include <span>

#include "common/base/aligned_buffer.h"
#include "common/base/thread_plan.h"
#include "common/config/weight_format.h"
#include "common/kernels/device.h"

namespace expertmesh {

// Of the layout on the host: changes whenever the same numbers get other bytes, since these are kept on disks.
constexpr unsigned kPackedLayout = 2;

// Where a weight lies. Both outlive it.
struct WeightHome {
  DeviceMemory* device = nullptr;       // that runs its GEMMs; null: this processor
  ThreadPlan const* threads = nullptr;  // those that run them here, whose nodes it is spread over; null: any
};

class PackedMatrix {
 public:
  PackedMatrix() = default;
  PackedMatrix(WeightFormat format, std::size_t n, std::size_t k, WeightHome const& home = {});
  // Bytes that another one of this format and shape had on this processor, kept by others as long as `keeper` is; at an
  // address that AlignedBuffer might give. For set_rows() there is no place in it.
  PackedMatrix(WeightFormat format, std::size_t n, std::size_t k, std::span<std::byte const> kept,
               std::shared_ptr<void const> keeper);

  // The same in memory of its own.
  static PackedMatrix copy_of(WeightFormat format, std::size_t n, std::size_t k, std::span<std::byte const> kept,
                              WeightHome const& home);

  // Fills rows [first_row, first_row + num_rows) from row-major [num_rows,K] numbers of `type` (f32, bf16 or f16),
  // rounding to nearest even where the format is narrower, by groups with scales where it has them. Any first_row: q,
  // k, v or gate, up fuse into one matrix.
  void set_rows(std::size_t first_row, std::size_t num_rows, DType type, std::byte const* rows);
  // The same of a matrix in MXFP4 or FP8, from a checkpoint's codes and scales:
  //   MXFP4  codes u8 [num_rows,K/2], the low half of a byte is the even k; scales E8M0 [num_rows,K/32]
  //   FP8    codes E4M3 [num_rows,K]; scales f32 [num_rows,ceil(K/group)]
  void set_codes(std::size_t first_row, std::size_t num_rows, std::byte const* codes, std::byte const* scales);

  [[nodiscard]] WeightFormat const& format() const { return format_; }
  [[nodiscard]] std::size_t n() const { return n_; }
  [[nodiscard]] std::size_t k() const { return k_; }
  [[nodiscard]] std::byte const* data() const { return keeper_ ? kept_.data() : data_.data(); }
  [[nodiscard]] DeviceMemory* device() const { return device_; }
  // Whether its pages are where ThreadPlan::node_of() says, by the plan of its home.
  [[nodiscard]] bool lies_by_regions() const { return by_regions_; }
  [[nodiscard]] PackedMatrix copy_to_host() const;  // of one on a device
  // Of one in MXFP4 or FP8, here: the bfloat16 numbers that processors multiply it as.
  [[nodiscard]] PackedMatrix widened() const;
  [[nodiscard]] DeviceWeight on_device() const {
    return {.storage = format_.storage, .activation = format_.activation, .n = n_, .k = k_, .data = data()};
  }
  [[nodiscard]] std::size_t size_bytes() const { return keeper_ ? kept_.size() : data_.size_bytes(); }

 private:
  WeightFormat format_;
  std::size_t n_ = 0;
  std::size_t k_ = 0;
  DeviceMemory* device_ = nullptr;
  bool by_regions_ = false;
  AlignedBuffer<std::byte> data_;
  std::span<std::byte const> kept_;  // in place of data_
  std::shared_ptr<void const> keeper_;
};

// Bytes PackedMatrix(format, n, k) will hold: for planning memory before loading.
std::size_t packed_bytes(WeightFormat const& format, std::size_t n, std::size_t k);
// Of a row that set_codes() takes.
struct CodedRowBytes {
  std::size_t codes = 0;
  std::size_t scales = 0;
};
CodedRowBytes coded_row_bytes(WeightFormat const& format, std::size_t k);
std::size_t device_weight_bytes(WeightFormat const& format, std::size_t n, std::size_t k);

}  // namespace expertmesh
