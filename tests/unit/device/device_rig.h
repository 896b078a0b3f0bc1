// What the tests of the ops share: a device to run them on, matrices in its memory.
#pragma once
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "common/tensor/tensor.h"
#include "tests/unit/device/test_device.h"
#include "tests/unit/kernels/reference.h"
#include "tests/unit/kernels/rig.h"

namespace expertmesh {

// Numbers in a device's memory.
template <class T>
class OnDevice {
 public:
  OnDevice(Device& device, std::vector<T> const& values)
      : device_(device), count_(values.size()), data_(device.allocate(std::max(count_, std::size_t{1}) * sizeof(T))) {
    if (count_ > 0) device_.upload(data_, values.data(), count_ * sizeof(T));
  }
  ~OnDevice() { device_.release(data_); }
  OnDevice(OnDevice const&) = delete;
  OnDevice& operator=(OnDevice const&) = delete;

  [[nodiscard]] T* data() const { return static_cast<T*>(data_); }
  [[nodiscard]] std::span<T const> span() const { return {data(), count_}; }
  [[nodiscard]] std::vector<T> values() const {
    std::vector<T> out(count_);
    device_.download(out.data(), data_, count_ * sizeof(T));
    return out;
  }

 private:
  Device& device_;
  std::size_t count_;
  void* data_;
};

// How a matrix lies in memory: columns of other matrices on both sides of its rows.
struct Margins {
  std::size_t before = 0;
  std::size_t after = 0;
};
// Rows by themselves; columns of a wider matrix that keep 16 bytes; columns that do not.
constexpr Margins kMargins[] = {{0, 0}, {4, 8}, {3, 2}};

class DeviceMatrix {
 public:
  DeviceMatrix(Device& device, MatrixView<float const> x, Margins margins = {})
      : rows_(x.rows),
        cols_(x.cols),
        stride_((x.cols + margins.before + margins.after + 3) / 4 * 4 + (margins.before % 4)),
        before_(margins.before),
        memory_(device, laid_out(x, stride_, before_)) {}

  [[nodiscard]] MatrixView<float> view() const { return {memory_.data() + before_, rows_, cols_, stride_}; }
  [[nodiscard]] Matrix<float> values() const {
    std::vector<float> const all = memory_.values();
    Matrix<float> out(rows_, cols_);
    for (std::size_t t = 0; t < rows_; ++t) std::copy_n(all.data() + t * stride_ + before_, cols_, out.view().row(t));
    return out;
  }
  // That nothing was written beside the rows.
  [[nodiscard]] bool margins_are_untouched() const {
    std::vector<float> const all = memory_.values();
    for (std::size_t t = 0; t < rows_; ++t)
      for (std::size_t i = 0; i < stride_; ++i)
        if ((i < before_ || i >= before_ + cols_) && all[t * stride_ + i] != kMargin) return false;
    return true;
  }

 private:
  static constexpr float kMargin = -777;
  static std::vector<float> laid_out(MatrixView<float const> x, std::size_t stride, std::size_t before) {
    std::vector<float> all(x.rows * stride, kMargin);
    for (std::size_t t = 0; t < x.rows; ++t) std::copy_n(x.row(t), x.cols, all.data() + t * stride + before);
    return all;
  }
  std::size_t rows_;
  std::size_t cols_;
  std::size_t stride_;
  std::size_t before_;
  OnDevice<float> memory_;
};

inline Matrix<float> filled(std::size_t rows, std::size_t cols, float value) {
  Matrix<float> out(rows, cols);
  std::fill_n(out.view().data, rows * cols, value);
  return out;
}

// Tests of this fixture have a device of their own, named in theirs, and the ops of the processor to compare with.
class EachDevice : public testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Device> device_ = test::open_test_device();
  Rig host_{Isa::scalar, 1};

  // f(T, H, how it lies)
  template <class F>
  void for_shapes(F f) {
    for (std::size_t rows : {1, 2, 5, 33})
      for (std::size_t cols : {1, 3, 72, 128, 2880})
        for (Margins margins : kMargins) {
          SCOPED_TRACE(testing::Message() << "[" << rows << "," << cols << "] after " << margins.before);
          f(rows, cols, margins);
        }
  }
};

inline std::string device_of_tests() {
  return test::on_gpu() ? "on_gpu" : "on_host";
}
inline std::string device_test_name(testing::TestParamInfo<std::string> const& info) {
  return info.param;
}

}  // namespace expertmesh

#define EM_FOR_EACH_DEVICE(fixture) \
  INSTANTIATE_TEST_SUITE_P(Device, fixture, testing::Values(device_of_tests()), device_test_name)
