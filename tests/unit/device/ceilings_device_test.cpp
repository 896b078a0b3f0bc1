// The work that shows how fast a device is is done as a whole; what the measurements give is the device's own business.
#include <cmath>
#include <numeric>

#include "common/kernels/machine_ceilings.h"
#include "tests/unit/device/device_rig.h"

namespace expertmesh {
namespace {

class DeviceCeilings : public EachDevice {};
EM_FOR_EACH_DEVICE(DeviceCeilings);

// Less than the threads have, some for each, and some that leave a rest.
TEST_P(DeviceCeilings, EveryWordIsRead) {
  for (std::size_t words : {4UL, 100UL, 4UL * 8192, 4UL * 8192 * 8 + 4 * 777 + 3}) {
    std::vector<std::uint32_t> numbers(words);
    std::uint32_t next = 12345;
    for (auto& number : numbers) number = next = next * 1664525 + 1013904223;
    OnDevice<std::uint32_t> const memory(*device_, numbers);
    OnDevice<std::uint32_t> const sum(*device_, {7});
    device_->read_stream(std::as_bytes(memory.span()), sum.data());
    EXPECT_EQ(sum.values()[0], std::accumulate(numbers.begin(), numbers.begin() + words / 4 * 4, 7U)) << words;
  }
}

TEST_P(DeviceCeilings, AreFiniteAndPositive) {
  for (std::size_t bytes : {std::size_t{1}, std::size_t{1'000'000}}) {
    double const read = measure_read_bandwidth(*device_, bytes, 2);
    EXPECT_TRUE(std::isfinite(read) && read > 0) << read;
  }
  for (PeakKind kind : {PeakKind::fp32, PeakKind::bf16_tensor}) {
    auto const flops = measure_peak_flops(*device_, kind, 1);
    bool const has_kind = kind == PeakKind::fp32 || test::on_gpu();
    ASSERT_EQ(flops.has_value(), has_kind);
    if (flops) {
      EXPECT_TRUE(std::isfinite(*flops) && *flops > 0) << *flops;
    }
  }
}

TEST_P(DeviceCeilings, OperationsGrowWithTheRounds) {
  OnDevice<float> const sum(*device_, {0});
  double const once = device_->multiply_add(PeakKind::fp32, 1, sum.data());
  EXPECT_GT(once, 0);
  EXPECT_EQ(device_->multiply_add(PeakKind::fp32, 3, sum.data()), 3 * once);
}

TEST_P(DeviceCeilings, MarksAreMomentsInTheOrderOfTheCalls) {
  auto const marks = device_->make_marks();
  OnDevice<float> const sum(*device_, {0});
  device_->hold(1e-3);  // a GPU's later marks are set before it begins
  for (std::size_t mark = 0; mark < 4; ++mark) {
    marks->set(mark);
    device_->multiply_add(PeakKind::fp32, 16, sum.data());
  }
  double parts = 0;
  for (std::size_t mark = 0; mark < 3; ++mark) {
    double const part = marks->seconds_between(mark, mark + 1);
    EXPECT_GT(part, 0);
    parts += part;
  }
  EXPECT_NEAR(marks->seconds_between(0, 3), parts, 1e-6 + 1e-3 * parts);
  marks->set(0);  // again, later
  device_->multiply_add(PeakKind::fp32, 16, sum.data());
  marks->set(1);
  EXPECT_GT(marks->seconds_between(0, 1), 0);
}

}  // namespace
}  // namespace expertmesh
