// The device that tests run on: the GPU if EM_TEST_DEVICE is cuda, else its emulation on the host. This alone decides;
// where the GPU is not there, tests fail.
#pragma once
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>

#include "device_on_host.h"
#include "tests/support/few_cases.h"

namespace expertmesh::test {

inline bool on_gpu() {
  char const* const wanted = std::getenv("EM_TEST_DEVICE");
  std::string const name = wanted == nullptr ? "" : wanted;
  if (name == "cuda") return true;
  if (name.empty() || name == "emulated") return false;
  throw std::invalid_argument("EM_TEST_DEVICE is '" + name + "': emulated or cuda");
}

inline std::unique_ptr<Device> open_test_device() {
  return on_gpu() ? open_cuda_device(0) : open_device_on_host();
}

// One for all tests of a program.
inline Device& test_device() {
  static std::unique_ptr<Device> const device = open_test_device();
  return *device;
}

}  // namespace expertmesh::test
