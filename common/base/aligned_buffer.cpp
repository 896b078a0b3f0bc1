#include "common/base/aligned_buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

namespace expertmesh {
namespace {

// Weights are read from end to end in every step, at memory's speed: with pages of 4 KiB, looking up addresses takes a
// tenth to a fifth of it.
constexpr std::size_t kHugePagesFrom = std::size_t{256} << 10;

// Of addresses that lasting buffers are cut from, one behind the other: the system gives a huge page only where all of
// it may be written when its first byte is. What nobody has written takes no memory.
constexpr std::size_t kStretchBytes = std::size_t{64} << 20;

// At a time: as long as it takes, the process can map no memory.
constexpr std::size_t kTouchBytes = std::size_t{2} << 20;

std::size_t page_bytes() {
  static auto const bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

std::size_t whole_pages(std::size_t bytes) {
  return (bytes + page_bytes() - 1) / page_bytes() * page_bytes();
}

// bytes: whole pages
std::byte* map_pages(std::size_t bytes) {
  void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  madvise(data, bytes, MADV_HUGEPAGE);  // a wish: where the system has none, nothing changes
  return static_cast<std::byte*>(data);
}

// bytes: whole pages
std::byte* cut_from_stretch(std::size_t bytes) {
  static std::mutex mutex;
  static std::span<std::byte> left;  // of the current stretch
  std::lock_guard const lock(mutex);
  if (left.size() < bytes) {
    std::byte* const next = map_pages(kStretchBytes);
    if (!left.empty()) munmap(left.data(), left.size());
    left = {next, kStretchBytes};
  }
  std::byte* const data = left.data();
  left = left.subspan(bytes);
  return data;
}

}  // namespace

// Past malloc: fresh pages are zeros. The address sanitizer looks after what malloc gives only.
bool pages_come_when_written(std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  return bytes > std::size_t{1} << 30;
#else
  return bytes >= kHugePagesFrom;
#endif
}

void* allocate_zeroed(std::size_t bytes, std::size_t alignment, Lifetime lifetime) {
  if (pages_come_when_written(bytes)) {
    std::size_t const pages = whole_pages(bytes);
    return lifetime == Lifetime::lasting && pages < kStretchBytes ? cut_from_stretch(pages) : map_pages(pages);
  }
  void* const data = std::aligned_alloc(alignment, bytes);
  if (!data) throw std::bad_alloc();
  std::memset(data, 0, bytes);
  return data;
}

void release(void* data, std::size_t bytes) {
  if (pages_come_when_written(bytes))
    munmap(data, whole_pages(bytes));
  else
    std::free(data);
}

bool touch_pages(std::span<std::byte> memory, std::stop_token const& stop) {
#ifdef MADV_POPULATE_WRITE
  auto const before = reinterpret_cast<std::uintptr_t>(memory.data()) % page_bytes();
  std::byte* const first = memory.data() - before;
  std::size_t const size = whole_pages(before + memory.size());
  for (std::size_t begin = 0; begin < size; begin += kTouchBytes) {
    if (stop.stop_requested()) return false;
    madvise(first + begin, std::min(kTouchBytes, size - begin), MADV_POPULATE_WRITE);
  }
#endif
  return !stop.stop_requested();
}

}  // namespace expertmesh
