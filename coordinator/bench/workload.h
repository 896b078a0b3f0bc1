// The requests of a load test, made from a seed: the same seed, the same requests at the same times.
#pragma once
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "common/base/strong_id.h"

namespace expertmesh {

struct LengthRange {
  std::size_t min = 0;
  std::size_t max = 0;  // included
};

struct WorkloadOptions {
  std::size_t num_prompts = 100;
  double request_rate = std::numeric_limits<double>::infinity();  // a second, a Poisson process; infinite: all at once
  LengthRange input_len{128, 128};
  LengthRange output_len{128, 128};
  std::size_t vocab = 1000;     // token ids are below
  double disconnect_share = 0;  // of requests whose client goes away in the middle
  std::uint64_t seed = 0;
};

struct PlannedRequest {
  double arrival_s = 0;  // after the start
  std::vector<TokenId> prompt;
  std::size_t output_len = 0;                   // most new tokens
  std::optional<std::size_t> disconnect_after;  // this many pieces of the answer, 1 or more
};

std::vector<PlannedRequest> plan_workload(WorkloadOptions const& options);  // in order of arrival, the first at 0

}  // namespace expertmesh
