#include "common/kernels/cuda/cuda_device.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "common/base/check.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {

void Scratch::reserve(std::size_t bytes) {
  if (bytes <= bytes_) return;
  wait(stream_);
  release_bytes(stream_, memory_);
  memory_ = nullptr;
  bytes_ = 0;
  memory_ = allocate_bytes(stream_, bytes);
  bytes_ = bytes;
}

std::byte* Scratch::get(std::size_t bytes) const {
  EM_CHECK(bytes <= bytes_, bytes << " bytes of a scratch of " << bytes_);
  return static_cast<std::byte*>(memory_);
}

namespace {

class Marks final : public DeviceMarks {
 public:
  explicit Marks(Stream& stream) : stream_(stream) {}
  void set(std::size_t mark) override {
    while (events_.size() <= mark) events_.push_back(make_event(stream_));
    record(stream_, *events_[mark]);
  }
  double seconds_between(std::size_t from, std::size_t to) override {
    EM_CHECK(to < events_.size() && from <= to, "from mark " << from << " to " << to << " of " << events_.size());
    return EM_DEVICE_NAMESPACE::seconds_between(stream_, *events_[from], *events_[to]);
  }

 private:
  Stream& stream_;
  std::vector<EventPointer> events_;
};

class Graph final : public DeviceGraph {
 public:
  Graph(Stream& stream, RecordingPointer recording) : stream_(stream), recording_(std::move(recording)) {}
  void launch() override { launch_recording(stream_, *recording_); }

 private:
  Stream& stream_;
  RecordingPointer recording_;
};

}  // namespace

CudaDevice::CudaDevice(std::size_t index) : index_(index), stream_(open_stream(index)), scratch_(*stream_) {}
CudaDevice::~CudaDevice() = default;

void* CudaDevice::allocate(std::size_t bytes) {
  std::lock_guard const turn(turn_);
  return allocate_bytes(*stream_, bytes);
}
void CudaDevice::release(void* memory) noexcept {
  std::lock_guard const turn(turn_);
  release_bytes(*stream_, memory);
}
void CudaDevice::upload(void* to, void const* from, std::size_t bytes) {
  std::lock_guard const turn(turn_);
  copy_in(*stream_, to, from, bytes);
}
void CudaDevice::download(void* to, void const* from, std::size_t bytes) {
  std::lock_guard const turn(turn_);
  copy_out(*stream_, to, from, bytes);
}

std::string CudaDevice::name() const {
  return "cuda:" + std::to_string(index_) + " " + device_name(*stream_);
}
std::size_t CudaDevice::free_bytes() const {
  return EM_DEVICE_NAMESPACE::free_bytes(*stream_);
}
std::size_t CudaDevice::scratch_bytes(ExecLimits const& limits) const {
  return std::max(attention_scratch_bytes(limits, num_multiprocessors(*stream_)), experts_scratch_bytes(limits));
}
void CudaDevice::reserve(ExecLimits const& limits) {
  scratch_.reserve(scratch_bytes(limits));
}
void CudaDevice::synchronize() {
  std::lock_guard const turn(turn_);
  wait(*stream_);
}
std::unique_ptr<DeviceMarks> CudaDevice::make_marks() {
  return std::make_unique<Marks>(*stream_);
}
void CudaDevice::begin_recording() {
  std::unique_lock turn(turn_);
  EM_DEVICE_NAMESPACE::begin_recording(*stream_);
  recording_ = std::move(turn);
}
std::unique_ptr<DeviceGraph> CudaDevice::end_recording() {
  auto const turn = std::move(recording_);
  return std::make_unique<Graph>(*stream_, EM_DEVICE_NAMESPACE::end_recording(*stream_));
}
void CudaDevice::discard_recording() noexcept {
  auto const turn = std::move(recording_);
  EM_DEVICE_NAMESPACE::discard_recording(*stream_);
}
void CudaDevice::hold(double seconds) {
  hold_back(*stream_, seconds);
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
