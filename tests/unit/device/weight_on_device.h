// Weights in a device's memory, in the layout that its kernels read.
#pragma once
#include "common/kernels/device_rows.h"
#include "tests/unit/device/device_rig.h"

namespace expertmesh {

class WeightOnDevice {
 public:
  // w: [N,K]
  WeightOnDevice(Device& device, MatrixView<float const> w, WeightFormat const& format)
      : format_(format), n_(w.rows), k_(w.cols), memory_(device, laid_out(w, format.storage)) {}
  [[nodiscard]] DeviceWeight weight() const {
    return {.storage = format_.storage, .activation = format_.activation, .n = n_, .k = k_, .data = memory_.data()};
  }

 private:
  static std::vector<std::byte> laid_out(MatrixView<float const> w, DType storage) {
    std::size_t const size = size_of(storage);
    std::size_t const row_bytes = device_row(storage, w.cols).bytes;
    std::vector<std::byte> bytes(w.rows * row_bytes);
    for (std::size_t n = 0; n < w.rows; ++n)
      for (std::size_t k = 0; k < w.cols; ++k) {
        std::byte* const to = bytes.data() + n * row_bytes + k * size;
        bf16 const narrow = to_bf16(w.row(n)[k]);
        std::memcpy(to, storage == DType::bf16 ? static_cast<void const*>(&narrow) : w.row(n) + k, size);
      }
    return bytes;
  }
  WeightFormat format_;
  std::size_t n_;
  std::size_t k_;
  OnDevice<std::byte> memory_;
};

// What a weight may be: the activations are rounded or not, whatever the storage is.
constexpr WeightFormat kDeviceFormats[] = {kFloat32Weights,
                                           kBfloat16Weights,
                                           {.storage = DType::bf16},
                                           {.storage = DType::f32, .activation = ActivationRule::round_to_bf16}};

}  // namespace expertmesh
