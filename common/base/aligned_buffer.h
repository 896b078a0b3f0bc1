// Owned memory aligned for vector loads and page-sized copies; fixed in size from its making, zero-filled.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <span>

namespace expertmesh {

// For std::free. Asks for huge pages where they pay. bytes: a multiple of alignment, not 0. Throws std::bad_alloc.
void* allocate_zeroed(std::size_t bytes, std::size_t alignment);

template <class T>
class AlignedBuffer {
 public:
  static constexpr std::size_t kAlignment = 64;  // bytes: one cache line, one AVX-512 register

  AlignedBuffer() = default;
  explicit AlignedBuffer(std::size_t count) : count_(count) {
    if (count == 0) return;
    std::size_t const bytes = (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    data_.reset(static_cast<T*>(allocate_zeroed(bytes, kAlignment)));
  }
  [[nodiscard]] T* data() { return data_.get(); }
  [[nodiscard]] T const* data() const { return data_.get(); }
  [[nodiscard]] std::size_t size() const { return count_; }
  [[nodiscard]] std::size_t size_bytes() const { return count_ * sizeof(T); }
  [[nodiscard]] std::span<T> span() { return {data_.get(), count_}; }
  [[nodiscard]] std::span<T const> span() const { return {data_.get(), count_}; }
  T& operator[](std::size_t i) { return data_.get()[i]; }
  T const& operator[](std::size_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  std::size_t count_ = 0;
};

}  // namespace expertmesh
