// An Exec with its thread pool, for one test.
#pragma once
#include <gtest/gtest.h>

#include "common/kernels/exec.h"

namespace expertmesh {

struct Rig {
  explicit Rig(Isa isa, std::size_t num_threads = 1, std::size_t max_columns = 320)
      : pool(num_threads), exec(isa, pool, {.max_rows = 160, .max_columns = max_columns, .max_head_dim = 160}) {}
  ThreadPool pool;
  Exec exec;
};

// Tests of this fixture run once on each ISA of this processor.
class EachIsa : public testing::TestWithParam<Isa> {};

inline std::string isa_test_name(testing::TestParamInfo<Isa> const& info) {
  return std::string(name_of(info.param));
}

}  // namespace expertmesh

#define EM_FOR_EACH_ISA(fixture) \
  INSTANTIATE_TEST_SUITE_P(Isa, fixture, testing::ValuesIn(runnable_isas()), isa_test_name)
