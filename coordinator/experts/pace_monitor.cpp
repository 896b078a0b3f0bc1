#include "coordinator/experts/pace_monitor.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

namespace expertmesh {
namespace {

constexpr double kMemory = 0.99;          // what an answer leaves of those before it in its class
constexpr double kLookMemory = 0.8;       // what a look leaves of those before it
constexpr double kEnough = 20;            // answers of a class, to judge by; kMemory lets at most 100 count
constexpr double kSlow = 1.0 / 3;         // of the others' speed: slow
constexpr double kRecovered = 2.0 / 3;    // of it: slow no longer
constexpr double kSlowest = 1.0 / 16;     // share that even the slowest gets
constexpr std::size_t kLooksToJudge = 3;  // in a row
constexpr std::size_t kLooksUnsure = 20;  // in a row without a slow answer: a slow one is tried again

}  // namespace

void PaceMonitor::add(Life life, std::size_t entries, double seconds) {
  auto pace = std::ranges::find(paces_, life, &Pace::life);
  if (pace == paces_.end()) pace = paces_.insert(paces_.end(), Pace{.life = life});
  Answers& like = pace->answers[std::min<std::size_t>(std::bit_width(entries), kSizeClasses - 1)];
  like.count = kMemory * like.count + 1;
  like.seconds = kMemory * like.seconds + seconds;
  ++pace->num_answers;
}

// To the middle one of the others, for answers of the same size. None if nobody else had any of late.
std::optional<double> PaceMonitor::relative_speed(Pace const& pace) const {
  double sum = 0;
  double weight = 0;
  for (std::size_t size = 0; size < kSizeClasses; ++size) {
    Answers const& own = pace.answers[size];
    if (own.count < kEnough) continue;
    std::vector<double> others;
    for (Pace const& other : paces_)
      if (!(other.life == pace.life) && other.speed == 1 && other.answers[size].count >= kEnough)
        others.push_back(other.answers[size].mean());
    if (others.empty()) continue;
    auto const middle = others.begin() + static_cast<std::ptrdiff_t>(others.size() / 2);
    std::ranges::nth_element(others, middle);
    sum += own.count * *middle / own.mean();
    weight += own.count;
  }
  return weight > 0 ? std::optional(sum / weight) : std::nullopt;
}

std::vector<PaceMonitor::Verdict> PaceMonitor::judge(std::vector<Life> const& living) {
  std::erase_if(paces_, [&](Pace const& pace) { return std::ranges::count(living, pace.life) == 0; });
  std::vector<Verdict> changes;
  for (Pace& pace : paces_) {
    bool const idle = std::exchange(pace.num_answers, 0) == 0;
    auto const seen = idle ? std::nullopt : relative_speed(pace);
    pace.looks_unsure = pace.speed < 1 && seen.value_or(kSlow) >= kSlow ? pace.looks_unsure + 1 : 0;
    double speed = pace.speed;
    if (seen && pace.speed == 1 && *seen < kSlow) speed = std::max(kSlowest, std::exp2(std::floor(std::log2(*seen))));
    if (pace.speed < 1 && seen.value_or(0) > kRecovered) speed = 1;
    pace.looks_alike = speed == pace.speed ? 0 : pace.looks_alike + 1;
    bool const try_again = pace.looks_unsure >= kLooksUnsure;
    if (pace.looks_alike < kLooksToJudge && !try_again) continue;
    if (try_again) speed = 1;
    pace = Pace{.life = pace.life, .speed = speed};  // with another share: what was seen counts no more
    changes.push_back({.life = pace.life, .speed = speed});
  }
  for (Pace& pace : paces_)
    for (Answers& like : pace.answers) {
      like.count *= kLookMemory;
      like.seconds *= kLookMemory;
    }
  return changes;
}

}  // namespace expertmesh
