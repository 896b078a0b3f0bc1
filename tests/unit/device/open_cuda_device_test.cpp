// What open_cuda_device() says where there is none; that the tests run on the device they were asked to run on.
#include <gtest/gtest.h>

#include <iostream>

#include "common/base/error.h"
#include "tests/unit/device/test_device.h"

namespace expertmesh {
namespace {

std::string refusal(std::size_t index) {
  try {
    open_cuda_device(index);
  } catch (DeviceError const& error) {
    return error.what();
  }
  return "none";
}

bool has_gpu() {
  try {
    return open_cuda_device(0) != nullptr;
  } catch (DeviceError const&) {
    return false;
  }
}

TEST(TestDevice, IsTheOneAskedFor) {
  std::string const name = test::open_test_device()->name();
  EXPECT_EQ(name == open_device_on_host()->name(), !test::on_gpu()) << name;
  std::cout << "device: " << name << std::endl;
}

TEST(OpenCudaDevice, SaysWhyThereIsNoDevice) {
  if (has_gpu()) GTEST_SKIP() << "there is a GPU";
  std::string const text = refusal(0);
  bool const plain = text.find("no NVIDIA driver is installed here") != std::string::npos ||
                     text.find("the NVIDIA driver finds no device here") != std::string::npos ||
                     text.find("this build has no CUDA") != std::string::npos ||
                     text.find("this build's kernels are for") != std::string::npos;
  EXPECT_TRUE(plain) << text;
  EXPECT_NE(text.find("[cuda:0"), std::string::npos) << text;
}

TEST(OpenCudaDevice, SaysThatADeviceIsBeyondTheLast) {
  std::string const text = refusal(1000);
  EXPECT_NE(text.find("[cuda:1000]"), std::string::npos) << text;
  if (has_gpu()) {
    EXPECT_NE(text.find("there is no such device"), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace expertmesh
