// The calls to CUDA's run time, each wrapped once: what fails throws DeviceError with the call, CUDA's code and text,
// and the device. tests/cuda_on_host has the same functions over plain memory.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "common/kernels/cuda/portable.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {

struct CloseStream {
  void operator()(Stream* stream) const;
};
using StreamPointer = std::unique_ptr<Stream, CloseStream>;

StreamPointer open_stream(std::size_t device_index);
// Another of the same device, which runs beside it; it has no uploads. The first must outlive it.
StreamPointer open_side_stream(Stream& stream);
void* handle_of(Stream& stream);                // for libraries: cudaStream_t
std::string device_name(Stream const& stream);  // "NVIDIA H200"
std::size_t free_bytes(Stream const& stream);
std::size_t num_multiprocessors(Stream const& stream);
// Most bytes of shared memory that a block may ask for.
std::size_t max_shared_bytes(Stream const& stream);

void* allocate_bytes(Stream& stream, std::size_t bytes);  // zeroed
void release_bytes(Stream& stream, void* memory) noexcept;
void copy_in(Stream& stream, void* to, void const* from, std::size_t bytes);   // from may be reused at once
void copy_out(Stream& stream, void* to, void const* from, std::size_t bytes);  // waits
void wait(Stream& stream);
// What is called for from now on begins so much later.
void hold_back(Stream& stream, double seconds);

// Launches kept for later: a CUDA graph. From begin_recording() on, launches are recorded and not done; nothing may be
// allocated, copied or waited for until end_recording(), which keeps nothing where that happened or a launch failed.
struct Recording;
struct CloseRecording {
  void operator()(Recording* recording) const;
};
using RecordingPointer = std::unique_ptr<Recording, CloseRecording>;
void begin_recording(Stream& stream);
RecordingPointer end_recording(Stream& stream);  // throws if there is nothing that could be launched
void discard_recording(Stream& stream) noexcept;
void launch_recording(Stream& stream, Recording& recording);
bool is_recording(Stream const& stream);  // not of one beside the first

// A moment of the device's time: when all that was called for before record() is done.
struct Event;
struct CloseEvent {
  void operator()(Event* event) const;
};
using EventPointer = std::unique_ptr<Event, CloseEvent>;
EventPointer make_event(Stream& stream);
void record(Stream& stream, Event& event);
// What is called for on `later` from now on begins when `event` is past, which was recorded on another stream.
void wait_for(Stream& later, Event const& event);
// What is called for on `later` from now on begins when all is done that `earlier` was asked for. One of the two is the
// first stream; in its recording, too, which the other is part of from then on: that has to end with the first behind
// it.
void order_behind(Stream& later, Stream& earlier, Event& by);
bool is_past(Stream& stream, Event const& event);                            // waits for nothing
double seconds_between(Stream& stream, Event const& from, Event const& to);  // waits for `to`

// Words of the host's memory that a device can write to in the order of a stream's work.
struct FreeWords {
  Stream* stream = nullptr;
  void operator()(std::uint32_t* words) const;
};
using HostWords = std::unique_ptr<std::uint32_t[], FreeWords>;
HostWords make_host_words(Stream& stream, std::size_t count);                      // zeros
void copy_word_out(Stream& stream, std::uint32_t* to, std::uint32_t const* from);  // to: of the above; does not wait
void clear_word(Stream& stream, std::uint32_t* word);                              // of the device

// After a launch: throws if it was refused. op: its name.
void check_launch(Stream& stream, char const* op);

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
