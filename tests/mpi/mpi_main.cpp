#include <gtest/gtest.h>

#include "common/transport/mpi_runtime.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  expertmesh::init_mpi();
  expertmesh::exit_without_finalize(RUN_ALL_TESTS());
}
