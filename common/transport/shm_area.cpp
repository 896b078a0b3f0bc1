#include "common/transport/shm_area.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <random>
#include <utility>

#include "common/base/check.h"

namespace expertmesh {
namespace {

constexpr std::uint32_t kMagic = 0x4853'4d45;  // "EMSH"
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kHeadBytes = 4096;
constexpr std::size_t kMostBytes = std::size_t{1} << 44;  // of a ring: what an area says of itself does not overflow
constexpr std::size_t kMostSlots = 1024;
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;  // memory that is cut off kills who touches it

[[noreturn]] void fail(char const* call, int code, std::string const& what) {
  throw ShmError(call, code, std::strerror(code), what);
}
[[noreturn]] void refuse(std::string const& text, std::string const& what) {
  throw ShmError("shared memory", EINVAL, text, what);
}

std::uint64_t random_token() {
  std::random_device device;
  std::uint64_t const token = static_cast<std::uint64_t>(device()) << 32 | device();
  return token == 0 ? 1 : token;
}

// The answer to a token: what the coordinator cannot have written itself.
std::uint64_t reply_to(std::uint64_t token) {
  return ~token;
}

class File {
 public:
  explicit File(int descriptor) : descriptor_(descriptor) {}
  File(File const&) = delete;
  File& operator=(File const&) = delete;
  ~File() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  [[nodiscard]] int get() const { return descriptor_; }
  int release() { return std::exchange(descriptor_, -1); }

 private:
  int descriptor_;
};

std::span<std::byte> map(int file, std::size_t bytes, std::string const& what) {
  void* const memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) fail("mmap", errno, what);
  return {static_cast<std::byte*>(memory), bytes};
}

bool is_sound(ShmRingShape const& ring) {
  return ring.num_slots > 0 && ring.num_slots <= kMostSlots && ring.slot_bytes <= kMostBytes;
}

}  // namespace

// Written by the coordinator before the worker hears of the area; `reply` by the worker.
struct ShmArea::Head {
  std::uint32_t magic;
  std::uint32_t version;
  std::uint64_t token;
  ShmShape shape;
  std::atomic<std::uint64_t> reply;
};

std::size_t ShmShape::memory_bytes() const {
  return kHeadBytes + to_worker.memory_bytes() + to_coordinator.memory_bytes();
}

ShmArea ShmArea::make(ShmShape const& shape) {
  static_assert(sizeof(Head) <= kHeadBytes);
  EM_CHECK(is_sound(shape.to_worker) && is_sound(shape.to_coordinator), "shared memory without room for messages");
  std::size_t const bytes = shape.memory_bytes();
  std::string const what = std::to_string(bytes) + " bytes";
  File file(::memfd_create("expertmesh-messages", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (file.get() < 0) fail("memfd_create", errno, what);
  if (::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) fail("ftruncate", errno, what);
  if (::fcntl(file.get(), F_ADD_SEALS, kSeals) != 0) fail("fcntl(F_ADD_SEALS)", errno, what);
  std::span<std::byte> const memory = map(file.get(), bytes, what);
  ShmArea area(End::coordinator, file.release(), memory, shape, random_token());
  Head* const head = area.head();
  head->magic = kMagic;
  head->version = kVersion;
  head->token = area.token_;
  head->shape = shape;
  return area;
}

std::string ShmArea::offer() const {
  EM_CHECK(file_ >= 0, "an offer of memory that was withdrawn");
  return std::to_string(token_) + " /proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(file_);
}

ShmArea ShmArea::open(std::string const& offer) {
  std::uint64_t token = 0;
  char const* const end = offer.data() + offer.size();
  auto const [rest, error] = std::from_chars(offer.data(), end, token);
  if (error != std::errc() || rest == end || *rest != ' ') refuse("the offer is unreadable", offer);
  std::string const path(rest + 1, end);
  // Not to wait for whatever else may be there.
  File const file(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) fail("open", errno, path);
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) fail("fstat", errno, path);
  int const seals = ::fcntl(file.get(), F_GET_SEALS);
  auto const bytes = static_cast<std::size_t>(std::max<off_t>(status.st_size, 0));
  if (!S_ISREG(status.st_mode) || seals < 0 || (seals & F_SEAL_SHRINK) == 0 || bytes < kHeadBytes)
    refuse("there is other memory than was offered", path);
  ShmArea area(End::worker, -1, map(file.get(), bytes, path), {}, token);
  Head const head_now{.magic = area.head()->magic,
                      .version = area.head()->version,
                      .token = area.head()->token,
                      .shape = area.head()->shape,
                      .reply = 0};
  if (head_now.magic != kMagic || head_now.version != kVersion || head_now.token != token)
    refuse("there is other memory than was offered", path);
  ShmShape const& shape = head_now.shape;
  if (!is_sound(shape.to_worker) || !is_sound(shape.to_coordinator) || shape.memory_bytes() > bytes)
    refuse("the memory is smaller than its rings", path);
  area.shape_ = shape;
  return area;
}

ShmArea::ShmArea(End end, int file, std::span<std::byte> memory, ShmShape const& shape, std::uint64_t token)
    : end_(end), file_(file), memory_(memory), shape_(shape), token_(token) {}

ShmArea::ShmArea(ShmArea&& other) noexcept
    : end_(other.end_),
      file_(std::exchange(other.file_, -1)),
      memory_(std::exchange(other.memory_, {})),
      shape_(other.shape_),
      token_(other.token_) {}

ShmArea::~ShmArea() {
  withdraw();
  if (!memory_.empty()) ::munmap(memory_.data(), memory_.size());
}

void ShmArea::withdraw() {
  if (file_ >= 0) ::close(std::exchange(file_, -1));
}

bool ShmArea::accepted() const {
  return head()->reply.load(std::memory_order_acquire) == reply_to(token_);
}

void ShmArea::accept() {
  head()->reply.store(reply_to(token_), std::memory_order_release);
}

ShmRingWriter ShmArea::writer() const {
  End const to = end_ == End::coordinator ? End::worker : End::coordinator;
  return {ring(to), shape(to)};
}

ShmRingReader ShmArea::reader() const {
  return {ring(end_), shape(end_)};
}

std::size_t ShmArea::max_message_bytes() const {
  return shape(end_ == End::coordinator ? End::worker : End::coordinator).slot_bytes;
}

ShmArea::Head* ShmArea::head() const {
  return reinterpret_cast<Head*>(memory_.data());
}

std::span<std::byte> ShmArea::ring(End to) const {
  std::size_t const first = shape_.to_worker.memory_bytes();
  return to == End::worker ? memory_.subspan(kHeadBytes, first)
                           : memory_.subspan(kHeadBytes + first, shape_.to_coordinator.memory_bytes());
}

ShmRingShape const& ShmArea::shape(End to) const {
  return to == End::worker ? shape_.to_worker : shape_.to_coordinator;
}

}  // namespace expertmesh
