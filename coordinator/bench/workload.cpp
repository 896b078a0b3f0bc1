#include "coordinator/bench/workload.h"

#include <cmath>

#include "common/base/check.h"
#include "common/base/counter_rng.h"

namespace expertmesh {
namespace {

// Draws of one request that are not prompt tokens.
enum Draw : std::uint32_t { kGap, kInputLength, kOutputLength, kDisconnect, kDisconnectAfter };

}  // namespace

std::vector<PlannedRequest> plan_workload(WorkloadOptions const& options) {
  EM_CHECK(options.request_rate > 0 && options.vocab > 0 && options.input_len.min > 0 && options.output_len.min > 0,
           "rate " << options.request_rate << ", vocabulary " << options.vocab);
  std::vector<PlannedRequest> requests(options.num_prompts);
  double arrival_s = 0;
  for (std::uint32_t r = 0; r < requests.size(); ++r) {
    auto const uniform = [&](Draw draw) {
      return random_uniform({.seed = options.seed, .choice = r, .purpose = RngPurpose::benchmark_request}, draw);
    };
    // Of [min, max].
    auto const whole = [&](Draw draw, std::size_t min, std::size_t max) {
      EM_CHECK(min <= max, "from " << min << " to " << max);
      return min + static_cast<std::size_t>(uniform(draw) * static_cast<double>(max - min + 1));
    };
    PlannedRequest& request = requests[r];
    if (r > 0) arrival_s += -std::log1p(-uniform(kGap)) / options.request_rate;  // 0 where the rate is infinite
    request.arrival_s = arrival_s;
    request.prompt.resize(whole(kInputLength, options.input_len.min, options.input_len.max));
    for (std::uint32_t t = 0; t < request.prompt.size(); ++t) {
      double const u =
          random_uniform({.seed = options.seed, .choice = r, .position = t, .purpose = RngPurpose::benchmark});
      request.prompt[t] = static_cast<TokenId>(u * static_cast<double>(options.vocab));
    }
    request.output_len = whole(kOutputLength, options.output_len.min, options.output_len.max);
    if (uniform(kDisconnect) < options.disconnect_share)
      request.disconnect_after = whole(kDisconnectAfter, 1, std::max<std::size_t>(1, request.output_len - 1));
  }
  return requests;
}

}  // namespace expertmesh
