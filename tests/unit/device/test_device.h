// The device that tests run on: the GPU that EM_TEST_DEVICE names (cuda), else its emulation on the host.
#pragma once
#include <cstdlib>
#include <memory>
#include <string>

#include "device_on_host.h"

namespace expertmesh::test {

inline std::unique_ptr<Device> open_test_device() {
  char const* const wanted = std::getenv("EM_TEST_DEVICE");
  if (wanted == nullptr || std::string(wanted) == "emulated") return open_device_on_host();
  return open_cuda_device(0);
}

// One for all tests of a program.
inline Device& test_device() {
  static std::unique_ptr<Device> const device = open_test_device();
  return *device;
}

}  // namespace expertmesh::test
