// Owned memory aligned for vector loads and page-sized copies; fixed in size from its making, zero-filled. On the host,
// or in a device's memory: then its address is for the device alone. Large ones on the host get their pages from the
// system when they are first written: nothing is written twice because of its zeros.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <stop_token>

#include "common/base/device_memory.h"

namespace expertmesh {

// How long a buffer lives. Lasting ones of a few pages and more lie side by side in stretches of addresses, apart from
// those that come and go between them: so nearly all of them is in huge pages.
enum class Lifetime : std::uint8_t { any, lasting };

// For release(), with as many bytes. Asks for huge pages where they pay. bytes: a multiple of alignment, which is at
// most a page; not 0. Throws std::bad_alloc.
void* allocate_zeroed(std::size_t bytes, std::size_t alignment, Lifetime lifetime);
void release(void* data, std::size_t bytes);
// Of so many bytes: whether the system gives the pages when they are first written.
bool pages_come_when_written(std::size_t bytes);

// Has the system give the pages behind this memory now, not when they are first written. What is in them stays, and
// others may use them meanwhile. False when it was told to stop before the end.
bool touch_pages(std::span<std::byte> memory, std::stop_token const& stop = {});

template <class T>
class AlignedBuffer {
 public:
  static constexpr std::size_t kAlignment = 64;  // bytes: one cache line, one AVX-512 register

  AlignedBuffer() = default;
  // device: must outlive the buffer; null: on the host.
  explicit AlignedBuffer(std::size_t count, DeviceMemory* device = nullptr, Lifetime lifetime = Lifetime::any)
      : count_(count) {
    if (count == 0) return;
    std::size_t const bytes = (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    data_ = Data(nullptr, Free{device, bytes});
    data_.reset(static_cast<T*>(device ? device->allocate(bytes) : allocate_zeroed(bytes, kAlignment, lifetime)));
  }
  // A copy of numbers of the host.
  explicit AlignedBuffer(std::span<T const> numbers, DeviceMemory* device = nullptr)
      : AlignedBuffer(numbers.size(), device) {
    if (numbers.empty()) return;
    if (device)
      device->upload(data(), numbers.data(), numbers.size_bytes());
    else
      std::copy(numbers.begin(), numbers.end(), data());
  }
  [[nodiscard]] T* data() { return data_.get(); }
  [[nodiscard]] T const* data() const { return data_.get(); }
  [[nodiscard]] std::size_t size() const { return count_; }
  [[nodiscard]] bool empty() const { return count_ == 0; }
  [[nodiscard]] std::size_t size_bytes() const { return count_ * sizeof(T); }
  [[nodiscard]] std::span<T> span() { return {data_.get(), count_}; }
  [[nodiscard]] std::span<T const> span() const { return {data_.get(), count_}; }
  // On the host.
  T& operator[](std::size_t i) { return data_.get()[i]; }
  T const& operator[](std::size_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    DeviceMemory* device = nullptr;
    std::size_t bytes = 0;
    void operator()(T* p) const {
      if (device)
        device->release(p);
      else
        release(p, bytes);
    }
  };
  using Data = std::unique_ptr<T, Free>;
  Data data_;
  std::size_t count_ = 0;
};

}  // namespace expertmesh
