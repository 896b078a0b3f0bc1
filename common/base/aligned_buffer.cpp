#include "common/base/aligned_buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>

namespace expertmesh {
namespace {

// Weights are read from end to end in every step, at memory's speed: with pages of 4 KiB, looking up addresses takes a
// tenth to a fifth of it. Matrices of this size lie side by side, so that huge pages may span several.
constexpr std::size_t kHugePagesFrom = std::size_t{256} << 10;

// A wish: where the system has no huge pages, nothing changes.
void wish_for_huge_pages(void* data, std::size_t bytes) {
  auto const page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  auto const before = reinterpret_cast<std::uintptr_t>(data) % page;  // from the start of its first page
  madvise(static_cast<std::byte*>(data) - before, (before + bytes + page - 1) / page * page, MADV_HUGEPAGE);
}

}  // namespace

void* allocate_zeroed(std::size_t bytes, std::size_t alignment) {
  void* const data = std::aligned_alloc(alignment, bytes);
  if (!data) throw std::bad_alloc();
  if (bytes >= kHugePagesFrom) wish_for_huge_pages(data, bytes);
  std::memset(data, 0, bytes);
  return data;
}

}  // namespace expertmesh
