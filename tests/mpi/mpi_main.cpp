#include <gtest/gtest.h>

#include "common/transport/mpi_runtime.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  expertmesh::init_mpi();
  int const code = RUN_ALL_TESTS();
  bool const any =
      testing::UnitTest::GetInstance()->test_to_run_count() > 0;  // a filter that fits nothing is a mistake
  expertmesh::exit_without_finalize(any ? code : 1);
}
