#include "common/base/cores.h"

#include <sched.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <string>

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

std::size_t usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::size_t cores = 1;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cores = static_cast<std::size_t>(CPU_COUNT(&set));
  std::ifstream quota_file("/sys/fs/cgroup/cpu.max");  // "<quota> <period>" in microseconds, or "max <period>"
  double quota = 0;
  double period = 0;
  if (quota_file >> quota >> period && period > 0)
    cores = std::min(cores, static_cast<std::size_t>(std::max(1.0, quota / period)));
  return std::max<std::size_t>(cores, 1);
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
