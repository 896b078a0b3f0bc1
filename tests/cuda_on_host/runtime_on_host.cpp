// The functions of runtime.h.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <future>
#include <memory>
#include <utility>
#include <vector>

#include "common/base/check.h"
#include "common/base/error.h"
#include "common/kernels/cuda/runtime.h"
#include "stream_on_host.h"
#include "thread_queue.h"

namespace expertmesh::cuda_on_host {

namespace {
constexpr std::size_t kNumDevices = 2;

void check_not_recording(Stream const& stream, char const* what) {
  EM_CHECK(!stream.recording && !(stream.queue && stream.queue->is_recording()), what << " in a recording");
}

// The others go on by themselves.
void leave_recording(Stream& stream) {
  stream.recording.reset();
  for (Stream* const other : std::exchange(stream.in_recording, {})) other->queue->record_by(nullptr);
}

void join_recording(Stream& other) {
  Stream& first = *other.first;
  if (std::ranges::count(first.in_recording, &other) != 0) return;
  first.in_recording.push_back(&other);
  other.queue->record_by([&first, &other](std::function<void()> work) {
    other.is_joined = false;
    first.recording->push_back(std::move(work));
  });
}
}  // namespace

StreamPointer open_stream(std::size_t device_index) {
  if (device_index >= kNumDevices)
    throw DeviceError("open_cuda_device", 1,
                      "there is no such device: " + std::to_string(kNumDevices) + " here, counted from 0",
                      "cuda:" + std::to_string(device_index));
  return StreamPointer(new Stream{.device_index = device_index});
}
StreamPointer open_side_stream(Stream& stream) {
  StreamPointer side(new Stream{.device_index = stream.device_index, .arena = stream.arena, .first = &stream});
  side->queue = make_thread_queue(side->memory);
  return side;
}
void* handle_of(Stream& stream) {
  return stream.queue.get();
}
void CloseStream::operator()(Stream* stream) const {
  delete stream;
}

std::string device_name(Stream const& /*stream*/) {
  return "emulated on the host";
}
std::size_t free_bytes(Stream const& stream) {
  return stream.memory.free_bytes();
}
std::size_t num_multiprocessors(Stream const& /*stream*/) {
  return 4;
}
std::size_t max_shared_bytes(Stream const& /*stream*/) {
  return kMostSharedBytes;
}

void* allocate_bytes(Stream& stream, std::size_t bytes) {
  EM_CHECK(bytes > 0, "an allocation of no bytes");
  check_not_recording(stream, "an allocation");
  void* const memory = stream.memory.allocate(bytes);
  if (!memory) throw DeviceError("allocate", 2, "no room for " + std::to_string(bytes) + " bytes", device_name(stream));
  return memory;
}
void release_bytes(Stream& stream, void* memory) noexcept {
  if (memory) stream.run([&arena = stream.memory, memory] { arena.release(memory); });
}

void copy_in(Stream& stream, void* to, void const* from, std::size_t bytes) {
  EM_CHECK(!stream.queue, "an upload on a stream beside the first");
  EM_CHECK(stream.memory.is_allocated(to, bytes), bytes << " bytes to " << to);
  check_not_recording(stream, "a copy");
  EM_CHECK(!stream.memory.contains(from), "from the device's own memory");
  auto const copy = [&arena = stream.memory, to, bytes](void const* source) {
    DeviceArena::Access const access(arena);
    std::memcpy(to, source, bytes);
  };
  if (stream.runs_at_once()) return copy(from);
  auto const* const begin = static_cast<std::byte const*>(from);
  stream.run([copy, kept = std::vector<std::byte>(begin, begin + bytes)] { copy(kept.data()); });
}
void copy_out(Stream& stream, void* to, void const* from, std::size_t bytes) {
  EM_CHECK(!stream.queue, "a download on a stream beside the first");
  EM_CHECK(stream.memory.is_allocated(from, bytes), bytes << " bytes from " << from);
  check_not_recording(stream, "a copy");
  EM_CHECK(!stream.memory.contains(to), "to the device's own memory");
  stream.finish();
  DeviceArena::Access const access(stream.memory);
  std::memcpy(to, from, bytes);
}
void wait(Stream& stream) {
  check_not_recording(stream, "a wait");
  stream.finish();
}
void hold_back(Stream& /*stream*/, double /*seconds*/) {}  // nothing could be called for in the meantime

struct Recording {
  Stream::Recording work;
};
void CloseRecording::operator()(Recording* recording) const {
  delete recording;
}
void begin_recording(Stream& stream) {
  check_not_recording(stream, "a recording");
  stream.recording.emplace();
}
RecordingPointer end_recording(Stream& stream) {
  EM_CHECK(stream.recording, "no recording");
  bool const joined = std::ranges::all_of(stream.in_recording, &Stream::is_joined);
  RecordingPointer recording(new Recording{.work = std::move(*stream.recording)});
  leave_recording(stream);
  if (!joined)
    throw DeviceError("end_recording", 904, "the first stream does not wait for another", device_name(stream));
  return recording;
}
void discard_recording(Stream& stream) noexcept {
  leave_recording(stream);
}
void launch_recording(Stream& stream, Recording& recording) {
  check_not_recording(stream, "a launch of a recording");
  for (auto const& work : recording.work) work();
}
bool is_recording(Stream const& stream) {
  return stream.recording.has_value();
}

struct Event {
  // Of its last record().
  struct Moment {
    std::promise<std::chrono::steady_clock::time_point> told;
    std::shared_future<std::chrono::steady_clock::time_point> time = told.get_future().share();
  };
  std::shared_ptr<Moment> moment{};

  [[nodiscard]] std::shared_future<std::chrono::steady_clock::time_point> time() const {
    EM_CHECK(moment != nullptr, "a moment that was not recorded");
    return moment->time;
  }
};
void CloseEvent::operator()(Event* event) const {
  delete event;
}
EventPointer make_event(Stream& /*stream*/) {
  return EventPointer(new Event);
}
void record(Stream& stream, Event& event) {
  check_not_recording(stream, "a mark");
  event.moment = std::make_shared<Event::Moment>();
  stream.run([moment = event.moment] { moment->told.set_value(std::chrono::steady_clock::now()); });
}
void wait_for(Stream& later, Event const& event) {
  if (!later.queue && is_past(later, event)) return;
  if (!later.queue && !later.behind) later.behind = make_thread_queue(later.memory);
  (later.queue ? later.queue : later.behind)->push([time = event.time()] { time.wait(); });
}
void order_behind(Stream& later, Stream& earlier, Event& by) {
  Stream& first = later.queue ? earlier : later;
  if (!first.recording) {
    record(earlier, by);
    return wait_for(later, by);
  }
  if (later.queue)
    join_recording(later);
  else
    EM_CHECK(earlier.queue->is_recording(), "a recording waits for what is not in it");
  (later.queue ? later : earlier).is_joined = later.queue == nullptr;
  first.recording->push_back([&later, &earlier, &by] { order_behind(later, earlier, by); });
}
bool is_past(Stream& /*stream*/, Event const& event) {
  return event.time().wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}
double seconds_between(Stream& /*stream*/, Event const& from, Event const& to) {
  return std::chrono::duration<double>(to.time().get() - from.time().get()).count();
}

void FreeWords::operator()(std::uint32_t* words) const {
  delete[] words;
}
HostWords make_host_words(Stream& stream, std::size_t count) {
  return HostWords(new std::uint32_t[count](), FreeWords{&stream});
}
void copy_word_out(Stream& stream, std::uint32_t* to, std::uint32_t const* from) {
  EM_CHECK(stream.memory.is_allocated(from, sizeof *from), "a word at " << from);
  stream.run([&memory = stream.memory, to, from] {
    DeviceArena::Access const access(memory);
    *to = *from;
  });
}
void clear_word(Stream& stream, std::uint32_t* word) {
  EM_CHECK(stream.memory.is_allocated(word, sizeof *word), "a word at " << word);
  stream.run([&memory = stream.memory, word] {
    DeviceArena::Access const access(memory);
    *word = 0;
  });
}

void check_launch(Stream& /*stream*/, char const* /*op*/) {}

}  // namespace expertmesh::cuda_on_host
