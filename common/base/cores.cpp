#include "common/base/cores.h"

#include <sched.h>

#include <ctime>

namespace expertmesh {

std::vector<int> allowed_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return cores;
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  return cores;
}

void restrict_to_cores(std::vector<int> const& cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int core : cores)
    if (core >= 0 && core < CPU_SETSIZE) CPU_SET(core, &set);
  sched_setaffinity(0, sizeof set, &set);
}

void give_way_to_others() {
  sched_param const normal{.sched_priority = 0};
  sched_setscheduler(0, SCHED_BATCH, &normal);
}

void pause_polling(PollPause pause) {
  if (pause == PollPause::yield) {
    sched_yield();
    return;
  }
  timespec const moment{.tv_sec = 0, .tv_nsec = 20'000};
  nanosleep(&moment, nullptr);
}

}  // namespace expertmesh
