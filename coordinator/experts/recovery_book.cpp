#include "coordinator/experts/recovery_book.h"

#include <utility>

#include "common/base/log.h"

namespace expertmesh {
namespace {

double seconds_of(RecoveryBook::Time::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

void RecoveryBook::noticed(ExchangeSlot& slot, std::uint32_t worker, Time now) {
  if (slot.recovery.under_way) return;
  slot.recovery = {.under_way = true, .noticed = now, .who = "worker " + std::to_string(worker)};
}

void RecoveryBook::asked_again(ExchangeSlot& slot, std::size_t rows, OwnExperts::Loads const& before,
                               OwnExperts::Loads const& now) {
  slot.recovery.rows += rows;
  slot.recovery.own_rows += now.rows - before.rows;
  double const rate = before.seconds > 0 ? static_cast<double>(before.bytes) / before.seconds : 0;
  slot.recovery.predicted_seconds +=
      usual_seconds_ + (rate > 0 ? static_cast<double>(now.bytes - before.bytes) / rate : 0);
}

void RecoveryBook::ended(ExchangeSlot& slot, std::uint32_t layer, Time now) {
  if (!slot.recovery.under_way) {
    usual_seconds_ += 0.05 * (seconds_of(now - slot.begin) - usual_seconds_);
    return;
  }
  auto const recovery = std::exchange(slot.recovery, {});
  double const seconds = seconds_of(now - recovery.noticed);
  ++sums_.exchanges;
  sums_.rows += recovery.rows;
  sums_.seconds += seconds;
  sums_.predicted_seconds += recovery.predicted_seconds;
  spdlog::warn(
      "{} died owing {} expert rows of layer {}: {} run here, the rest by others; the step went on {:.1f} ms "
      "after the death was noticed (predicted {:.1f} ms)",
      recovery.who, recovery.rows, layer, recovery.own_rows, seconds * 1e3, recovery.predicted_seconds * 1e3);
}

}  // namespace expertmesh
