#include "common/base/check.h"
#include "common/kernels/device.h"

namespace expertmesh {
namespace {

constexpr std::string_view kCuda = "cuda";
constexpr std::size_t kMostDigits = 3;

}  // namespace

std::string valid_device_name(std::string const& name) {
  std::string_view rest = name;
  bool known = name == "cpu" || name == kCuda;
  if (rest.starts_with("cuda:")) {
    rest.remove_prefix(kCuda.size() + 1);
    known =
        !rest.empty() && rest.size() <= kMostDigits && rest.find_first_not_of("0123456789") == std::string_view::npos;
  }
  return known ? "" : "'" + name + "' is none of cpu, cuda, cuda:N";
}

std::optional<std::size_t> cuda_index(std::string const& name) {
  EM_CHECK(valid_device_name(name).empty(), name);
  if (name == "cpu") return std::nullopt;
  return name == kCuda ? 0 : std::stoul(name.substr(kCuda.size() + 1));
}

}  // namespace expertmesh
