// LinkQueue: a second stream of the device.
#include <algorithm>
#include <array>

#include "common/base/check.h"
#include "common/base/error.h"
#include "common/kernels/cuda/cuda_device.h"
#include "common/kernels/cuda/numbers.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kThreads = 256;
constexpr std::size_t kMostBlocks = 64;

// All ones in the exponent: an infinity or a NaN.
struct LookForInfinities {
  std::byte const* numbers;
  std::size_t count;
  bool bf16;
  std::uint32_t* found;  // added to
};
__global__ void __launch_bounds__(kThreads) look_for_infinities_in(LookForInfinities a) {
  std::uint32_t found = 0;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x; i < a.count;
       i += static_cast<std::size_t>(gridDim.x) * kThreads) {
    std::uint32_t const bits = a.bf16 ? static_cast<std::uint32_t>(reinterpret_cast<std::uint16_t const*>(a.numbers)[i])
                                            << 16
                                      : reinterpret_cast<std::uint32_t const*>(a.numbers)[i];
    found |= (bits & 0x7f800000U) == 0x7f800000U ? 1U : 0U;
  }
  if (__ballot_sync(kAllLanes, static_cast<int>(found)) != 0 && threadIdx.x % kWarp == 0) atomicAdd(a.found, 1U);
}

class SideQueue final : public LinkQueue {
 public:
  explicit SideQueue(Stream& main)
      : main_(main),
        side_(open_side_stream(main)),
        device_done_(make_event(main)),
        queue_done_(make_event(*side_)),
        found_(static_cast<std::uint32_t*>(allocate_bytes(main, sizeof(std::uint32_t)))),
        told_(make_host_words(main, kMarks)) {
    for (EventPointer& mark : marks_) mark = make_event(*side_);
    order_behind(*side_, main_, *device_done_);  // found_ is zero
  }
  ~SideQueue() override {
    try {
      wait(*side_);
    } catch (DeviceError const&) {  // it was told, or nobody asked
    }
    release_bytes(main_, found_);
  }
  SideQueue(SideQueue const&) = delete;
  SideQueue& operator=(SideQueue const&) = delete;

  [[nodiscard]] void* handle() override { return handle_of(*side_); }
  void follow_device() override { order_behind(*side_, main_, *device_done_); }
  void hold_device() override { order_behind(main_, *side_, *queue_done_); }
  [[nodiscard]] bool is_recording() const override { return EM_DEVICE_NAMESPACE::is_recording(main_); }
  void look_for_infinities(DType type, std::byte const* numbers, std::size_t count) override {
    EM_CHECK(type == DType::f32 || type == DType::bf16, "numbers of " << name_of(type));
    std::size_t const blocks = std::min(kMostBlocks, (count + kThreads - 1) / kThreads);
    launch(look_for_infinities_in, {.x = static_cast<unsigned>(blocks)}, kThreads, 0, *side_,
           LookForInfinities{numbers, count, type == DType::bf16, found_});
    check_launch(*side_, "look_for_infinities");
  }
  void set(std::size_t mark) override {
    EM_CHECK(mark < kMarks, "mark " << mark);
    copy_word_out(*side_, &told_[mark], found_);
    clear_word(*side_, found_);
    record(*side_, *marks_[mark]);
  }
  bool done(std::size_t mark) override { return is_past(*side_, *marks_[mark]); }
  [[nodiscard]] bool found_infinities(std::size_t mark) const override { return told_[mark] != 0; }

 private:
  Stream& main_;
  StreamPointer side_;
  EventPointer device_done_;
  EventPointer queue_done_;
  std::uint32_t* found_;  // of the device
  HostWords told_;        // [kMarks] what it was at the mark
  std::array<EventPointer, kMarks> marks_;
};

}  // namespace

std::unique_ptr<LinkQueue> CudaDevice::make_link_queue() {
  return std::make_unique<SideQueue>(*stream_);
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
