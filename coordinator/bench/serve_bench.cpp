#include "coordinator/bench/serve_bench.h"

#include <spdlog/fmt/chrono.h>
#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <iostream>

#include "coordinator/http/api_keys.h"

namespace expertmesh {
namespace {

// On a terminal one line that is written over and over; elsewhere a line a second.
class ProgressBar {
 public:
  ProgressBar(std::size_t total, bool forced)
      : total_(total), terminal_(isatty(STDERR_FILENO) == 1), shown_(terminal_ || forced) {}

  void show(LoadProgressCounts const& c) {
    std::size_t const ended = c.completed + c.failed + c.disconnected;
    bool const last = ended == total_;
    auto const now = Clock::now();
    if (!shown_ || (!terminal_ && !last && now - printed_ < std::chrono::seconds(1))) return;
    printed_ = now;
    double const seconds = std::max(std::chrono::duration<double>(now - start_).count(), 1e-9);
    std::size_t const filled = total_ == 0 ? kWidth : kWidth * ended / total_;
    std::cerr << (terminal_ ? "\r" : "")
              << fmt::format("[{:<{}}] {}/{} ended, {} running, {} failed, {:.1f} pieces/s", std::string(filled, '#'),
                             kWidth, ended, total_, c.running, c.failed, static_cast<double>(c.pieces) / seconds)
              << (terminal_ ? "\x1b[K" : "") << (last || !terminal_ ? "\n" : "") << std::flush;
    shown_ = !last;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::size_t kWidth = 30;
  std::size_t const total_;
  bool const terminal_;
  bool shown_;
  Clock::time_point const start_ = Clock::now();
  Clock::time_point printed_{};
};

}  // namespace

ServeBenchResult run_serve_bench(ServeBenchOptions const& options) {
  LoadOptions load{.server = parse_base_url(options.base_url),
                   .model = {},
                   .api_key = options.api_key_file ? read_api_keys(*options.api_key_file).front() : std::string(),
                   .endpoint = options.endpoint,
                   .max_concurrency = options.max_concurrency,
                   .ignore_eos = options.ignore_eos,
                   .timeout_s = options.timeout_s};
  load.model = options.model ? *options.model : ask_for_model(load.server, load.api_key);
  auto const workload = plan_workload(options.workload);
  std::string const date = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
  ProgressBar bar(workload.size(), options.progress);
  LoadResult const result = run_load(load, workload, [&](LoadProgressCounts const& counts) { bar.show(counts); });
  return {.model = load.model, .date = date, .figures = figures_of(result)};
}

}  // namespace expertmesh
