// Matrix views (borrowed) and tensors (owned). Shapes are row-major; a view's stride is in elements.
#pragma once
#include <cstddef>

#include "common/base/aligned_buffer.h"

namespace expertmesh {

// [rows, cols], row r starts at data + r * stride.
template <class T>
struct MatrixView {
  T* data = nullptr;
  std::size_t rows = 0;
  std::size_t cols = 0;
  std::size_t stride = 0;

  MatrixView() = default;
  MatrixView(T* d, std::size_t r, std::size_t c) : data(d), rows(r), cols(c), stride(c) {}
  MatrixView(T* d, std::size_t r, std::size_t c, std::size_t s) : data(d), rows(r), cols(c), stride(s) {}
  template <class U>
  requires(!std::is_same_v<U, T> && std::is_convertible_v<U*, T*>)
      MatrixView(MatrixView<U> other)  // NOLINT(google-explicit-constructor): T -> T const
      : data(other.data), rows(other.rows), cols(other.cols), stride(other.stride) {}

  [[nodiscard]] T* row(std::size_t r) const { return data + r * stride; }
  // Columns [begin, begin + count) of every row.
  [[nodiscard]] MatrixView columns(std::size_t begin, std::size_t count) const {
    return {data + begin, rows, count, stride};
  }
  [[nodiscard]] MatrixView first_rows(std::size_t count) const { return {data, count, cols, stride}; }
  [[nodiscard]] MatrixView row_range(std::size_t begin, std::size_t count) const {
    return {row(begin), count, cols, stride};
  }
};

// Owned [rows, cols] matrix, on the host or on a device.
template <class T>
class Matrix {
 public:
  Matrix() = default;
  // device: null: on the host.
  Matrix(std::size_t rows, std::size_t cols, DeviceMemory* device = nullptr)
      : rows_(rows), cols_(cols), buffer_(rows * cols, device) {}
  [[nodiscard]] MatrixView<T> view() { return {buffer_.data(), rows_, cols_}; }
  [[nodiscard]] MatrixView<T const> view() const { return {buffer_.data(), rows_, cols_}; }
  [[nodiscard]] std::size_t size_bytes() const { return buffer_.size_bytes(); }

 private:
  std::size_t rows_ = 0;
  std::size_t cols_ = 0;
  AlignedBuffer<T> buffer_;
};

}  // namespace expertmesh
