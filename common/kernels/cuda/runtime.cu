// The functions of runtime.h, and how a device is opened.
#include "common/kernels/cuda/runtime.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "common/base/check.h"
#include "common/base/error.h"
#include "common/kernels/cuda/cuda_device.h"

namespace expertmesh {
namespace cuda_device {

// Pinned memory that uploads pass through: what CUDA does with other memory, and when it has read it, is its own
// affair. Its halves take turns, so that one is filled while the other is on its way.
struct UploadRoom {
  static constexpr std::size_t kHalfBytes = std::size_t{4} << 20;
  static constexpr std::size_t kAlignment = 256;
  std::mutex mutex;                     // loading threads upload side by side
  std::byte* memory = nullptr;          // [2][kHalfBytes]
  std::array<cudaEvent_t, 2> copied{};  // all that was in the half
  std::size_t half = 0;                 // that is filled
  std::size_t used = 0;                 // bytes of it
};

struct Stream {
  int device = 0;
  std::string name;
  std::size_t multiprocessors = 0;
  std::size_t most_shared_bytes = 0;
  cudaStream_t queue = nullptr;
  bool pools = false;  // memory comes and goes in the queue's order
  UploadRoom uploads{};
  bool recording = false;
};

namespace {

// Of dynamic shared memory, that every kernel may have: 48 KiB together with what is static.
constexpr std::size_t kSharedBytesUnasked = 40 << 10;

std::string place_of(std::size_t device_index) {
  return "cuda:" + std::to_string(device_index);
}
std::string place_of(Stream const& stream) {
  return place_of(static_cast<std::size_t>(stream.device)) + " " + stream.name;
}

[[noreturn]] void fail(char const* call, cudaError_t code, std::string const& place, std::string const& text = {}) {
  throw DeviceError(call, static_cast<int>(code), text.empty() ? cudaGetErrorString(code) : text, place);
}

void check(cudaError_t code, char const* call, Stream const& stream) {
  if (code != cudaSuccess) fail(call, code, place_of(stream));
}

// What CUDA answers otherwise ends the recording, and says so somewhere else.
void check_not_recording(Stream const& stream, char const* what) {
  EM_CHECK(!stream.recording, what << " in a recording");
}

void make_current(Stream const& stream) {
  check(cudaSetDevice(stream.device), "cudaSetDevice", stream);
}

std::string version_text(int version) {  // 13000 is 13.0
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::size_t num_devices(std::string const& place) {
  int count = 0;
  cudaError_t const code = cudaGetDeviceCount(&count);
  if (code == cudaErrorInsufficientDriver)
    fail("cudaGetDeviceCount", code, place,
         "no NVIDIA driver is installed here, or one older than CUDA " + version_text(CUDART_VERSION) + " needs");
  if (code == cudaErrorNoDevice) fail("cudaGetDeviceCount", code, place, "the NVIDIA driver finds no device here");
  if (code != cudaSuccess) fail("cudaGetDeviceCount", code, place);
  return static_cast<std::size_t>(count);
}

struct Nothing {};
__global__ void compiled_for_this_device(Nothing) {}

// Kernels of all files are compiled for the same devices.
void check_kernels_run(Stream const& stream, cudaDeviceProp const& properties) {
  cudaFuncAttributes attributes{};
  cudaError_t const code = cudaFuncGetAttributes(&attributes, reinterpret_cast<void const*>(compiled_for_this_device));
  if (code == cudaErrorNoKernelImageForDevice || code == cudaErrorInvalidDeviceFunction ||
      code == cudaErrorUnsupportedPtxVersion)
    fail("cudaFuncGetAttributes", code, place_of(stream),
         "it has compute capability " + std::to_string(properties.major) + "." + std::to_string(properties.minor) +
             ", and this build's kernels are for " EM_CUDA_ARCHITECTURES " only");
  check(code, "cudaFuncGetAttributes", stream);
}

}  // namespace

StreamPointer open_stream(std::size_t device_index) {
  std::string const place = place_of(device_index);
  // Kernels are loaded at once: a first launch later on might wait for others that wait for a peer. And queues that do
  // not wait for each other need connections of their own. The environment may say otherwise; read at the first call.
  static std::once_flag once;
  std::call_once(once, [] {
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
  });
  std::size_t const count = num_devices(place);
  if (device_index >= count)
    fail("open_cuda_device", cudaErrorInvalidDevice, place,
         "there is no such device: " + std::to_string(count) + " here, counted from 0");
  StreamPointer stream(new Stream);
  stream->device = static_cast<int>(device_index);
  make_current(*stream);
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, stream->device), "cudaGetDeviceProperties", *stream);
  stream->name = properties.name;
  stream->multiprocessors = static_cast<std::size_t>(properties.multiProcessorCount);
  stream->most_shared_bytes = properties.sharedMemPerBlockOptin;
  stream->pools = properties.memoryPoolsSupported != 0;
  check_kernels_run(*stream, properties);
  check(cudaStreamCreateWithFlags(&stream->queue, cudaStreamNonBlocking), "cudaStreamCreate", *stream);
  void* memory = nullptr;
  check(cudaMallocHost(&memory, 2 * UploadRoom::kHalfBytes), "cudaMallocHost", *stream);
  stream->uploads.memory = static_cast<std::byte*>(memory);
  for (cudaEvent_t& event : stream->uploads.copied)
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate", *stream);
  return stream;
}

StreamPointer open_side_stream(Stream& stream) {
  StreamPointer side(new Stream{.device = stream.device,
                                .name = stream.name,
                                .multiprocessors = stream.multiprocessors,
                                .most_shared_bytes = stream.most_shared_bytes});
  make_current(*side);
  check(cudaStreamCreateWithFlags(&side->queue, cudaStreamNonBlocking), "cudaStreamCreate", *side);
  return side;
}

void* handle_of(Stream& stream) {
  return stream.queue;
}

void CloseStream::operator()(Stream* stream) const {
  if (stream->queue && cudaSetDevice(stream->device) == cudaSuccess) {
    cudaStreamSynchronize(stream->queue);  // then nothing reads what follows
    for (cudaEvent_t const event : stream->uploads.copied)
      if (event) cudaEventDestroy(event);
    cudaFreeHost(stream->uploads.memory);  // of nothing: nothing
    cudaStreamDestroy(stream->queue);
  }
  delete stream;
}

std::string device_name(Stream const& stream) {
  return stream.name;
}
std::size_t free_bytes(Stream const& stream) {
  make_current(stream);
  std::size_t free = 0;
  std::size_t total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo", stream);
  return free;
}
std::size_t num_multiprocessors(Stream const& stream) {
  return stream.multiprocessors;
}
std::size_t max_shared_bytes(Stream const& stream) {
  return stream.most_shared_bytes;
}

void* allocate_bytes(Stream& stream, std::size_t bytes) {
  check_not_recording(stream, "an allocation");
  make_current(stream);
  void* memory = nullptr;
  // cudaFree waits for all of the device's queues, and what a link sends for its peer: nothing may wait for that here.
  cudaError_t const code = stream.pools ? cudaMallocAsync(&memory, bytes, stream.queue) : cudaMalloc(&memory, bytes);
  if (code == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());  // nothing is broken by it
    fail("cudaMalloc", code, place_of(stream),
         "no room for " + std::to_string(bytes) + " bytes, " + std::to_string(free_bytes(stream)) + " are free");
  }
  check(code, "cudaMalloc", stream);
  check(cudaMemsetAsync(memory, 0, bytes, stream.queue), "cudaMemsetAsync", stream);
  return memory;
}

void release_bytes(Stream& stream, void* memory) noexcept {
  // Errors of earlier work come back from here too; wait() has told them or will.
  check_not_recording(stream, "a release");
  if (!memory || cudaSetDevice(stream.device) != cudaSuccess) return;
  static_cast<void>(stream.pools ? cudaFreeAsync(memory, stream.queue) : cudaFree(memory));
}

void copy_in(Stream& stream, void* to, void const* from, std::size_t bytes) {
  check_not_recording(stream, "a copy");
  make_current(stream);
  UploadRoom& room = stream.uploads;
  std::lock_guard const lock(room.mutex);
  for (std::size_t done = 0; done < bytes;) {
    if (room.used == UploadRoom::kHalfBytes) {
      check(cudaEventRecord(room.copied[room.half], stream.queue), "cudaEventRecord", stream);
      room.half = 1 - room.half;
      room.used = 0;
      check(cudaEventSynchronize(room.copied[room.half]), "cudaEventSynchronize", stream);  // at once the first time
    }
    std::size_t const part = std::min(bytes - done, UploadRoom::kHalfBytes - room.used);
    std::byte* const place = room.memory + room.half * UploadRoom::kHalfBytes + room.used;
    std::memcpy(place, static_cast<std::byte const*>(from) + done, part);
    check(cudaMemcpyAsync(static_cast<std::byte*>(to) + done, place, part, cudaMemcpyHostToDevice, stream.queue),
          "cudaMemcpyAsync", stream);
    room.used += (part + UploadRoom::kAlignment - 1) / UploadRoom::kAlignment * UploadRoom::kAlignment;
    done += part;
  }
}

void copy_out(Stream& stream, void* to, void const* from, std::size_t bytes) {
  check_not_recording(stream, "a copy");
  make_current(stream);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream.queue), "cudaMemcpyAsync", stream);
  wait(stream);
}

void wait(Stream& stream) {
  check_not_recording(stream, "a wait");
  make_current(stream);
  check(cudaStreamSynchronize(stream.queue), "cudaStreamSynchronize", stream);
}

namespace {
struct Hold {
  unsigned long long nanoseconds;
};
__device__ unsigned long long nanoseconds_now() {
  unsigned long long now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}
__global__ void wait_so_long(Hold a) {
  unsigned long long const begin = nanoseconds_now();
  while (nanoseconds_now() - begin < a.nanoseconds) __nanosleep(200);
}
}  // namespace

void hold_back(Stream& stream, double seconds) {
  launch(wait_so_long, {}, 1, 0, stream, Hold{static_cast<unsigned long long>(seconds * 1e9)});
  check_launch(stream, "hold");
}

struct Recording {
  int device = 0;
  cudaGraphExec_t graph = nullptr;
};
void CloseRecording::operator()(Recording* recording) const {
  if (recording->graph && cudaSetDevice(recording->device) == cudaSuccess) cudaGraphExecDestroy(recording->graph);
  delete recording;
}
void begin_recording(Stream& stream) {
  make_current(stream);
  // Other threads may go on loading, on streams of their own.
  check(cudaStreamBeginCapture(stream.queue, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture", stream);
  stream.recording = true;
}
RecordingPointer end_recording(Stream& stream) {
  make_current(stream);
  stream.recording = false;
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream.queue, &graph), "cudaStreamEndCapture", stream);
  RecordingPointer recording(new Recording{.device = stream.device});
  cudaError_t const code = cudaGraphInstantiate(&recording->graph, graph, 0);
  cudaGraphDestroy(graph);
  if (code != cudaSuccess) static_cast<void>(cudaGetLastError());  // nothing is broken by it
  check(code, "cudaGraphInstantiate", stream);
  return recording;
}
void discard_recording(Stream& stream) noexcept {
  stream.recording = false;
  cudaGraph_t graph = nullptr;
  if (cudaSetDevice(stream.device) != cudaSuccess) return;
  if (cudaStreamEndCapture(stream.queue, &graph) == cudaSuccess && graph) cudaGraphDestroy(graph);
  static_cast<void>(cudaGetLastError());  // why is told by what failed
}
void launch_recording(Stream& stream, Recording& recording) {
  make_current(stream);
  check(cudaGraphLaunch(recording.graph, stream.queue), "cudaGraphLaunch", stream);
}

bool is_recording(Stream const& stream) {
  return stream.recording;
}

struct Event {
  int device = 0;
  cudaEvent_t event = nullptr;
};
void CloseEvent::operator()(Event* event) const {
  if (event->event && cudaSetDevice(event->device) == cudaSuccess) cudaEventDestroy(event->event);
  delete event;
}
EventPointer make_event(Stream& stream) {
  make_current(stream);
  EventPointer event(new Event{.device = stream.device});
  check(cudaEventCreate(&event->event), "cudaEventCreate", stream);
  return event;
}
void record(Stream& stream, Event& event) {
  check_not_recording(stream, "a mark");
  make_current(stream);
  check(cudaEventRecord(event.event, stream.queue), "cudaEventRecord", stream);
}
void wait_for(Stream& later, Event const& event) {
  check_not_recording(later, "a wait");
  make_current(later);
  check(cudaStreamWaitEvent(later.queue, event.event, 0), "cudaStreamWaitEvent", later);
}
void order_behind(Stream& later, Stream& earlier, Event& by) {
  make_current(later);
  check(cudaEventRecord(by.event, earlier.queue), "cudaEventRecord", later);
  check(cudaStreamWaitEvent(later.queue, by.event, 0), "cudaStreamWaitEvent", later);
}
bool is_past(Stream& stream, Event const& event) {
  make_current(stream);
  cudaError_t const code = cudaEventQuery(event.event);
  if (code == cudaErrorNotReady) {
    static_cast<void>(cudaGetLastError());  // no error
    return false;
  }
  check(code, "cudaEventQuery", stream);
  return true;
}
double seconds_between(Stream& stream, Event const& from, Event const& to) {
  make_current(stream);
  check(cudaEventSynchronize(to.event), "cudaEventSynchronize", stream);
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, from.event, to.event), "cudaEventElapsedTime", stream);
  return static_cast<double>(milliseconds) * 1e-3;
}

void FreeWords::operator()(std::uint32_t* words) const {
  if (cudaSetDevice(stream->device) == cudaSuccess) static_cast<void>(cudaFreeHost(words));
}
HostWords make_host_words(Stream& stream, std::size_t count) {
  make_current(stream);
  void* memory = nullptr;
  check(cudaMallocHost(&memory, count * sizeof(std::uint32_t)), "cudaMallocHost", stream);
  std::memset(memory, 0, count * sizeof(std::uint32_t));
  return HostWords(static_cast<std::uint32_t*>(memory), FreeWords{&stream});
}
void copy_word_out(Stream& stream, std::uint32_t* to, std::uint32_t const* from) {
  make_current(stream);
  check(cudaMemcpyAsync(to, from, sizeof *to, cudaMemcpyDeviceToHost, stream.queue), "cudaMemcpyAsync", stream);
}
void clear_word(Stream& stream, std::uint32_t* word) {
  make_current(stream);
  check(cudaMemsetAsync(word, 0, sizeof *word, stream.queue), "cudaMemsetAsync", stream);
}

void check_launch(Stream& stream, char const* op) {
  check(cudaGetLastError(), op, stream);
}

cudaStream_t ready_for_launch(Stream& stream, void const* kernel, std::size_t shared_bytes) {
  make_current(stream);
  if (shared_bytes <= kSharedBytesUnasked) return stream.queue;
  // Only ever more: graphs and other threads rely on what was asked for before.
  static std::mutex mutex;
  static std::map<std::pair<int, void const*>, std::size_t> asked;
  std::lock_guard const lock(mutex);
  std::size_t& most = asked[{stream.device, kernel}];
  if (shared_bytes > most) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
          "cudaFuncSetAttribute", stream);
    most = shared_bytes;
  }
  return stream.queue;
}

}  // namespace cuda_device

std::unique_ptr<Device> open_cuda_device(std::size_t index) {
  return std::make_unique<cuda_device::CudaDevice>(index);
}

}  // namespace expertmesh
