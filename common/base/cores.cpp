#include "common/base/cores.h"

#include <sched.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <limits>

#include "common/base/cgroup.h"

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

std::string list_of(std::vector<int> const& cores) {
  std::string text;
  for (int const core : cores) text += (text.empty() ? "" : ",") + std::to_string(core);
  return text;
}

std::size_t usable_cores() {
  auto const cores = static_cast<double>(allowed_cores().size());
  return static_cast<std::size_t>(std::max(1.0, std::min(cores, cpu_quota())));
}

double cpu_quota(std::filesystem::path const& root) {
  double least = std::numeric_limits<double>::infinity();
  for (Cgroup const& group : cgroups_of_process("cpu", root)) {
    double quota = 0;
    double period = 0;
    bool limited = false;
    if (group.version == CgroupVersion::v2) {  // "<quota> <period>" in microseconds, or "max <period>"
      std::ifstream file(group.folder / "cpu.max");
      limited = static_cast<bool>(file >> quota >> period);
    } else {  // a quota of -1: none
      std::ifstream quota_file(group.folder / "cpu.cfs_quota_us");
      std::ifstream period_file(group.folder / "cpu.cfs_period_us");
      limited = quota_file >> quota && period_file >> period;
    }
    if (limited && quota > 0 && period > 0) least = std::min(least, quota / period);
  }
  return least;
}

bool restrict_to_cores(std::vector<int> const& cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int core : cores)
    if (core >= 0 && core < CPU_SETSIZE) CPU_SET(core, &set);
  return sched_setaffinity(0, sizeof set, &set) == 0;
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
