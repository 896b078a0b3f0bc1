// The memory of the device on the host: mapped, but out of reach except while an Access lives, as a GPU's memory is for
// host code. Behind each allocation lies memory that can never be touched; freed memory is not given out again.
#pragma once
#include <cstddef>
#include <map>
#include <mutex>

namespace expertmesh::cuda_on_host {

class DeviceArena {
 public:
  DeviceArena();
  ~DeviceArena();
  DeviceArena(DeviceArena const&) = delete;
  DeviceArena& operator=(DeviceArena const&) = delete;

  [[nodiscard]] void* allocate(std::size_t bytes);  // zeroed, at 256 bytes; null: no room
  void release(void* memory);
  [[nodiscard]] std::size_t free_bytes() const;
  [[nodiscard]] bool contains(void const* address) const;  // in the arena, whether allocated or not
  // Whether [memory, memory + bytes) lies in one allocation.
  [[nodiscard]] bool is_allocated(void const* memory, std::size_t bytes) const;

  class Access {
   public:
    explicit Access(DeviceArena& arena) : arena_(arena) { arena_.open(); }
    ~Access() { arena_.close(); }
    Access(Access const&) = delete;
    Access& operator=(Access const&) = delete;

   private:
    DeviceArena& arena_;
  };

 private:
  void open();
  void close();
  void check_tail(std::byte const* memory, std::size_t bytes) const;

  mutable std::mutex mutex_;
  std::byte* base_;
  std::size_t used_ = 0;  // bytes from base_ on that have been given out
  std::size_t live_ = 0;  // bytes allocated and not released
  std::size_t depth_ = 0;
  int nothing_;                                  // an empty file: mapped memory of it cannot be touched
  std::map<std::byte*, std::size_t> allocated_;  // -> bytes
};

}  // namespace expertmesh::cuda_on_host
