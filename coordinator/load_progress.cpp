#include "coordinator/load_progress.h"

#include <spdlog/fmt/fmt.h>

#include "common/base/log.h"

namespace expertmesh {
namespace {
constexpr std::chrono::milliseconds kBetweenLines{500};
}

std::string human_bytes(std::size_t bytes) {
  auto const value = static_cast<double>(bytes);
  if (value >= 1e9) return fmt::format("{:.2f} GB", value / 1e9);
  if (value >= 1e6) return fmt::format("{:.1f} MB", value / 1e6);
  return fmt::format("{:.1f} kB", value / 1e3);
}

LoadProgressPrinter::LoadProgressPrinter(std::string what, std::size_t total_bytes)
    : what_(std::move(what)), total_(total_bytes) {}

void LoadProgressPrinter::add(std::size_t bytes) {
  std::lock_guard lock(mutex_);
  loaded_ += bytes;
  print(false);
}

void LoadProgressPrinter::update(std::size_t loaded_bytes, std::size_t total_bytes) {
  std::lock_guard lock(mutex_);
  loaded_ = loaded_bytes;
  total_ = total_bytes;
  print(false);
}

void LoadProgressPrinter::finish() {
  std::lock_guard lock(mutex_);
  print(true);
}

void LoadProgressPrinter::print(bool last) {
  auto const now = Clock::now();
  if (!last && now - last_print_ < kBetweenLines) return;
  last_print_ = now;
  double const seconds = std::max(std::chrono::duration<double>(now - start_).count(), 1e-9);
  double const rate = static_cast<double>(loaded_) / seconds;
  if (last) {
    spdlog::info("loaded {}: {} in {:.2f} s, {:.2f} GB/s", what_, human_bytes(loaded_), seconds, rate / 1e9);
  } else {
    double const left = rate > 0 && total_ > loaded_ ? static_cast<double>(total_ - loaded_) / rate : 0;
    spdlog::info("loading {}: {} of {}, {:.2f} GB/s, {:.0f} s left", what_, human_bytes(loaded_), human_bytes(total_),
                 rate / 1e9, left);
  }
}

}  // namespace expertmesh
