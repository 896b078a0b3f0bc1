#include "coordinator/model/stage_times.h"

namespace expertmesh {

void StageTimes::begin_on_device() {
  ended_.clear();
  marks_->set(0);
}

void StageTimes::end_on_device(Stage stage) {
  ended_.push_back(stage);
  marks_->set(ended_.size());
}

void StageTimes::finish() {
  for (std::size_t i = 0; i < ended_.size(); ++i)
    seconds_[static_cast<std::size_t>(ended_[i])] += marks_->seconds_between(i, i + 1);
  ended_.clear();
}

}  // namespace expertmesh
