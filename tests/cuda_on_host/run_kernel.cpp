#include <cxxabi.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "cuda_on_host.h"
#include "fiber.h"
#include "stream_on_host.h"

namespace expertmesh::cuda_on_host {

constinit thread_local Index3 threadIdx;
constinit thread_local Index3 blockIdx;
constinit thread_local Index3 blockDim;
constinit thread_local Index3 gridDim;

namespace {

constexpr unsigned kLanes = 32;
constexpr unsigned kMostThreads = 1024;
constexpr std::uintptr_t kLowestHostAddress = 0x5000'0000'0000;
constexpr int kPoison = 0xff;  // NaN in every format

std::string demangled(char const* name) {
  int status = 0;
  std::unique_ptr<char, void (*)(void*)> const text(abi::__cxa_demangle(name, nullptr, nullptr, &status), std::free);
  return status == 0 ? text.get() : name;
}

// Memory that ends where none is mapped.
class DynamicShared {
 public:
  DynamicShared() : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    room_ = (kMostSharedBytes + page_ - 1) / page_ * page_;
    memory_ = mmap(nullptr, room_ + page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EM_CHECK(memory_ != MAP_FAILED && mprotect(end(), page_, PROT_NONE) == 0, "no memory for shared memory");
  }
  ~DynamicShared() { munmap(memory_, room_ + page_); }
  DynamicShared(DynamicShared const&) = delete;
  DynamicShared& operator=(DynamicShared const&) = delete;
  // The last `bytes` of it, from an address as aligned as a GPU's.
  [[nodiscard]] std::byte* last(std::size_t bytes) const { return end() - (bytes + 15) / 16 * 16; }
  [[nodiscard]] bool is_behind(void const* address) const { return address >= end() && address < end() + page_; }

 private:
  [[nodiscard]] std::byte* end() const { return static_cast<std::byte*>(memory_) + room_; }
  std::size_t page_;
  std::size_t room_;
  void* memory_;
};

enum class At : std::uint8_t { running, warp, block, end };

struct Copy {
  void* to;
  void const* from;
  std::size_t bytes;
  unsigned group;
};

class Machine;
struct Thread {
  Thread(Machine& m, void (*body)(void*)) : machine(m), fiber(body, this) {}
  Machine& machine;
  Fiber fiber;
  unsigned index = 0;
  At at = At::end;
  Place place;
  std::vector<Copy> copies;  // to be done
  unsigned copy_groups = 0;  // that have ended
};

// Runs the blocks of a launch. Made once for each OS thread that launches: fibers are reused.
class Machine {
 public:
  void run(Stream& stream, KernelCall const& call);
  void wait_here(At at, Place place);
  std::uint32_t const* exchange(std::uint32_t value, Place place);
  void work_in_warp(void* mine, std::size_t bytes, void (*together)(void*), Place place);
  Thread& current() { return *current_; }
  void enter_shared(void* memory, std::size_t bytes);
  void* dynamic_shared();
  [[nodiscard]] std::string what_runs() const;
  [[nodiscard]] bool runs() const { return current_ != nullptr; }
  [[nodiscard]] std::string kind_of(void const* address) const;

 private:
  struct Warp {
    std::array<std::uint32_t, kLanes> given;
    std::array<std::uint32_t, kLanes> received;
    alignas(16) std::array<std::byte, kLanes * kMostOfLane> side_by_side;
    void (*together)(void*);  // to be called on them
  };
  void run_block();
  void run_warp(unsigned warp, bool backwards);
  void resume(Thread& thread);
  bool finish_exchange(unsigned warp);
  bool finish_barrier();
  void check_together(unsigned first, unsigned count) const;
  void check_arguments() const;
  [[nodiscard]] std::string standing(Thread const& thread) const;

  Stream* stream_ = nullptr;
  KernelCall const* call_ = nullptr;
  std::vector<std::unique_ptr<Thread>> threads_;  // at least as many as the largest block so far
  Thread* current_ = nullptr;
  std::array<Warp, kMostThreads / kLanes> warps_{};
  DynamicShared dynamic_;
  std::vector<void*> entered_;  // static shared memory that this block has used
  std::size_t shared_bytes_ = 0;
};

Machine& machine() {
  thread_local Machine instance;
  return instance;
}

// ---- what runs where
std::string Machine::what_runs() const {
  std::string text = "kernel of " + demangled(call_->arguments_type) + ", block [" + std::to_string(blockIdx.x) + "," +
                     std::to_string(blockIdx.y) + "," + std::to_string(blockIdx.z) + "]";
  return current_ ? text + ", thread " + std::to_string(current_->index) : text;
}

std::string Machine::standing(Thread const& thread) const {
  std::string const who = "thread " + std::to_string(thread.index);
  if (thread.at == At::end) return who + " has ended";
  return who + (thread.at == At::block ? " waits for the block at " : " waits for the warp at ") + thread.place.file +
         ":" + std::to_string(thread.place.line);
}

std::string Machine::kind_of(void const* address) const {
  if (stream_->memory.contains(address)) return "not allocated in the device's memory";
  if (dynamic_.is_behind(address)) return "behind the dynamic shared memory";
  return "neither the device's nor shared memory";
}

// Threads [first, first + count) stand at the same place.
void Machine::check_together(unsigned first, unsigned count) const {
  Thread const& one = *threads_[first];
  for (unsigned i = first + 1; i < first + count; ++i) {
    Thread const& other = *threads_[i];
    bool const together = other.at == one.at && (one.at == At::end || other.place.line == one.place.line);
    EM_CHECK(together, what_runs() << ": " << standing(one) << ", " << standing(other));
  }
}

// ---- threads
void Machine::wait_here(At at, Place place) {
  EM_CHECK(current_ != nullptr, "outside a kernel");
  Thread& self = *current_;
  self.at = at;
  self.place = place;
  self.fiber.suspend();
}

std::uint32_t const* Machine::exchange(std::uint32_t value, Place place) {
  Thread& self = *current_;
  Warp& warp = warps_[self.index / kLanes];
  warp.given[self.index % kLanes] = value;
  wait_here(At::warp, place);
  return warp.received.data();
}

void Machine::work_in_warp(void* mine, std::size_t bytes, void (*together)(void*), Place place) {
  Thread& self = *current_;
  Warp& warp = warps_[self.index / kLanes];
  std::byte* const place_of_mine = warp.side_by_side.data() + self.index % kLanes * bytes;
  std::memcpy(place_of_mine, mine, bytes);
  warp.together = together;
  wait_here(At::warp, place);
  std::memcpy(mine, place_of_mine, bytes);
}

void Machine::enter_shared(void* memory, std::size_t bytes) {
  if (std::find(entered_.begin(), entered_.end(), memory) != entered_.end()) return;
  entered_.push_back(memory);
  shared_bytes_ += bytes;
  EM_CHECK(shared_bytes_ - call_->shared_bytes <= kMostStaticSharedBytes && shared_bytes_ <= kMostSharedBytes,
           what_runs() << ": " << shared_bytes_ << " bytes of shared memory, " << call_->shared_bytes << " dynamic");
  std::memset(memory, kPoison, bytes);
}

void* Machine::dynamic_shared() {
  return dynamic_.last(call_->shared_bytes);
}

void Machine::resume(Thread& thread) {
  current_ = &thread;
  threadIdx = {thread.index, 0, 0};
  thread.fiber.resume();
  current_ = nullptr;
}

// ---- blocks
bool Machine::finish_exchange(unsigned warp) {
  check_together(warp * kLanes, kLanes);
  if (threads_[warp * kLanes]->at != At::warp) return false;
  if (void (*const together)(void*) = std::exchange(warps_[warp].together, nullptr))
    together(warps_[warp].side_by_side.data());
  else
    warps_[warp].received = warps_[warp].given;
  for (unsigned lane = 0; lane < kLanes; ++lane) threads_[warp * kLanes + lane]->at = At::running;
  return true;
}

void Machine::run_warp(unsigned warp, bool backwards) {
  do {
    for (unsigned i = 0; i < kLanes; ++i) resume(*threads_[warp * kLanes + (backwards ? kLanes - 1 - i : i)]);
  } while (finish_exchange(warp));
}

bool Machine::finish_barrier() {
  check_together(0, call_->threads);
  if (threads_[0]->at == At::end) return false;
  for (unsigned i = 0; i < call_->threads; ++i) threads_[i]->at = At::running;
  return true;
}

void Machine::run_block() {
  entered_.clear();
  shared_bytes_ = call_->shared_bytes;
  std::memset(dynamic_shared(), kPoison, call_->shared_bytes);
  unsigned const num_warps = call_->threads / kLanes;
  bool const backwards = (blockIdx.x + blockIdx.y + blockIdx.z) % 2 == 0;
  do {
    for (unsigned i = 0; i < num_warps; ++i) run_warp(backwards ? num_warps - 1 - i : i, backwards);
  } while (finish_barrier());
}

// A pointer among the arguments that is not the device's: what leads to mapped memory where programs have theirs (two
// small numbers side by side are below).
void Machine::check_arguments() const {
  auto const page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  for (std::size_t i = 0; i + sizeof(std::uintptr_t) <= call_->arguments_bytes; i += sizeof(std::uintptr_t)) {
    std::uintptr_t word = 0;
    std::memcpy(&word, static_cast<std::byte const*>(call_->arguments.get()) + i, sizeof word);
    if (word < kLowestHostAddress || stream_->memory.contains(reinterpret_cast<void const*>(word))) continue;
    unsigned char resident = 0;
    bool const mapped = mincore(reinterpret_cast<void*>(word / page * page), 1, &resident) == 0;
    EM_CHECK(!mapped, what_runs() << ": its arguments point to memory of the host at byte " << i);
  }
}

void Machine::run(Stream& stream, KernelCall const& call) {
  EM_CHECK(current_ == nullptr, "a launch inside a kernel");
  stream_ = &stream;
  call_ = &call;
  blockIdx = {};
  EM_CHECK(call.threads > 0 && call.threads % kLanes == 0 && call.threads <= kMostThreads,
           what_runs() << ": " << call.threads << " threads");
  EM_CHECK(call.grid_x <= 0x7fffffffU && call.grid_y <= 0xffffU && call.grid_z <= 0xffffU,
           what_runs() << ": grid [" << call.grid_x << "," << call.grid_y << "," << call.grid_z << "]");
  EM_CHECK(call.shared_bytes <= kMostSharedBytes, what_runs() << ": " << call.shared_bytes << " bytes shared");
  check_arguments();
  while (threads_.size() < call.threads) {
    auto thread = std::make_unique<Thread>(*this, [](void* self) {
      auto& t = *static_cast<Thread*>(self);
      t.machine.call_->thread();
      EM_CHECK(t.copies.empty(), t.machine.what_runs() << ": ends before its copies are there");
      t.copy_groups = 0;
      t.at = At::end;
    });
    thread->index = static_cast<unsigned>(threads_.size());
    threads_.push_back(std::move(thread));
  }
  gridDim = {call.grid_x, call.grid_y, call.grid_z};
  blockDim = {call.threads, 1, 1};
  for (unsigned z = 0; z < call.grid_z; ++z)
    for (unsigned y = 0; y < call.grid_y; ++y)
      for (unsigned x = 0; x < call.grid_x; ++x) {
        blockIdx = {x, y, z};
        run_block();
      }
}

// ---- memory that is not there
void die_of_access(int signal_number, siginfo_t* info, void* /*context*/) {
  signal(signal_number, SIG_DFL);
  if (!machine().runs()) return;  // not a kernel's: it happens again, and ends the process
  EM_CHECK(info->si_code != SI_KERNEL, machine().what_runs() << ": an access to a misaligned address, or to none");
  EM_CHECK(false,
           machine().what_runs() << ": touches " << info->si_addr << ", which is " << machine().kind_of(info->si_addr));
}

// While it lives, a kernel's access to memory that is not there is told with its place.
class AccessFaults {
 public:
  AccessFaults() {
    thread_local std::vector<std::byte> stack(64 << 10);  // the fiber's may be what is at its end
    stack_t const other{.ss_sp = stack.data(), .ss_flags = 0, .ss_size = stack.size()};
    EM_CHECK(sigaltstack(&other, &old_stack_) == 0, "sigaltstack");
    struct sigaction action {};
    action.sa_sigaction = die_of_access;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &old_segv_);
    sigaction(SIGBUS, &action, &old_bus_);
  }
  ~AccessFaults() {
    sigaction(SIGSEGV, &old_segv_, nullptr);
    sigaction(SIGBUS, &old_bus_, nullptr);
    sigaltstack(&old_stack_, nullptr);
  }
  AccessFaults(AccessFaults const&) = delete;
  AccessFaults& operator=(AccessFaults const&) = delete;

 private:
  stack_t old_stack_{};
  struct sigaction old_segv_ {};
  struct sigaction old_bus_ {};
};

}  // namespace

void run_kernel(Stream& stream, KernelCall call) {
  if (call.grid_x == 0 || call.grid_y == 0 || call.grid_z == 0) return;
  if (stream.recording)
    return stream.recording->push_back([&stream, call = std::move(call)] { run_kernel(stream, call); });
  EM_CHECK(!stream.queue || !stream.queue->is_recording(), "a kernel of a stream beside the first in a recording");
  stream.run([&stream, call = std::move(call)] {
    DeviceArena::Access const access(stream.memory);
    AccessFaults const faults;
    machine().run(stream, call);
  });
}

void wait_for_block(Place place) {
  machine().wait_here(At::block, place);
}
std::uint32_t const* exchange_in_warp(std::uint32_t value, Place place) {
  return machine().exchange(value, place);
}
void work_in_warp(void* mine, std::size_t bytes, void (*together)(void*), Place place) {
  static_assert(kLanes == 32);
  machine().work_in_warp(mine, bytes, together, place);
}
void copy_later(void* to, void const* from, std::size_t bytes) {
  Thread& thread = machine().current();
  thread.copies.push_back({to, from, bytes, thread.copy_groups});
}
void end_group_of_copies() {
  ++machine().current().copy_groups;
}
void wait_for_copies_but(unsigned groups) {
  Thread& thread = machine().current();
  std::erase_if(thread.copies, [&](Copy const& copy) {
    if (copy.group + groups >= thread.copy_groups) return false;
    if (copy.from)
      std::memcpy(copy.to, copy.from, copy.bytes);
    else
      std::memset(copy.to, 0, copy.bytes);
    return true;
  });
}
void check_mask(unsigned mask, Place place) {
  EM_CHECK(mask == 0xffffffffU, "not all lanes at " << place.file << ":" << place.line);
}
void enter_shared(void* memory, std::size_t bytes) {
  machine().enter_shared(memory, bytes);
}
void* dynamic_shared() {
  return machine().dynamic_shared();
}

}  // namespace expertmesh::cuda_on_host
