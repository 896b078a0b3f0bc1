#include "device_arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "common/base/check.h"

namespace expertmesh::cuda_on_host {
namespace {

constexpr std::size_t kAddresses = std::size_t{64} << 30;  // bytes of address space: what is freed stays used up
constexpr std::size_t kCapacity = std::size_t{1} << 30;    // bytes that may be allocated at a time
constexpr std::size_t kAlignment = 256;
constexpr int kTail = 0xff;  // fills what rounding an allocation up leaves behind it: NaN to who reads it

std::size_t rounded_up(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}
std::size_t page_bytes() {
  return static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

DeviceArena::DeviceArena() : nothing_(memfd_create("no_memory", MFD_CLOEXEC)) {
  EM_CHECK(nothing_ >= 0, "memfd_create");
  void* const memory = mmap(nullptr, kAddresses, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE, nothing_, 0);
  EM_CHECK(memory != MAP_FAILED, "no address space");
  base_ = static_cast<std::byte*>(memory);
}

DeviceArena::~DeviceArena() {
  while (!allocated_.empty()) release(allocated_.begin()->first);
  munmap(base_, kAddresses);
  ::close(nothing_);
}

void* DeviceArena::allocate(std::size_t bytes) {
  std::size_t const room = rounded_up(bytes, kAlignment);
  std::size_t const mapped = rounded_up(room, page_bytes());
  std::byte* memory = nullptr;
  {
    std::lock_guard const lock(mutex_);
    if (live_ + room > kCapacity || used_ + mapped + page_bytes() > kAddresses) return nullptr;
    std::byte* const pages = base_ + used_;
    int const access = depth_ > 0 ? PROT_READ | PROT_WRITE : PROT_NONE;
    if (mmap(pages, mapped, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
      return nullptr;
    used_ += mapped + page_bytes();
    live_ += room;
    memory = pages + (mapped - room);  // ends where the pages end
    allocated_[memory] = bytes;
  }
  Access const access(*this);
  std::memset(memory + bytes, kTail, room - bytes);
  return memory;
}

void DeviceArena::release(void* memory) {
  Access const access(*this);
  std::lock_guard const lock(mutex_);
  auto const found = allocated_.find(static_cast<std::byte*>(memory));
  EM_CHECK(found != allocated_.end(), "release of memory that is not allocated");
  auto const [begin, bytes] = *found;
  check_tail(begin, bytes);
  std::size_t const room = rounded_up(bytes, kAlignment);
  std::size_t const mapped = rounded_up(room, page_bytes());
  std::byte* const pages = begin + room - mapped;
  // At its own place in the file again: it becomes one mapping with its neighbours.
  void* const gone =
      mmap(pages, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, nothing_, pages - base_);
  EM_CHECK(gone == pages, "mapping of released memory");
  live_ -= room;
  allocated_.erase(found);
}

void DeviceArena::check_tail(std::byte const* memory, std::size_t bytes) const {
  EM_CHECK(std::all_of(memory + bytes, memory + rounded_up(bytes, kAlignment),
                       [](std::byte b) { return b == static_cast<std::byte>(kTail); }),
           "something was written behind an allocation of " << bytes << " bytes of device memory");
}

std::size_t DeviceArena::free_bytes() const {
  std::lock_guard const lock(mutex_);
  return kCapacity - live_;
}

bool DeviceArena::contains(void const* address) const {
  auto const* const byte = static_cast<std::byte const*>(address);
  return byte >= base_ && byte < base_ + kAddresses;
}

bool DeviceArena::is_allocated(void const* memory, std::size_t bytes) const {
  std::lock_guard const lock(mutex_);
  auto* const begin = static_cast<std::byte*>(const_cast<void*>(memory));
  auto behind = allocated_.upper_bound(begin);
  if (behind == allocated_.begin()) return false;
  auto const& [start, size] = *std::prev(behind);
  return begin + bytes <= start + size;
}

void DeviceArena::open() {
  std::lock_guard const lock(mutex_);
  if (depth_++ == 0 && used_ > 0)
    EM_CHECK(mprotect(base_, used_, PROT_READ | PROT_WRITE) == 0, "mprotect of " << used_ << " bytes");
}

void DeviceArena::close() {
  std::lock_guard const lock(mutex_);
  if (--depth_ == 0 && used_ > 0) EM_CHECK(mprotect(base_, used_, PROT_NONE) == 0, "mprotect of " << used_ << " bytes");
}

}  // namespace expertmesh::cuda_on_host
