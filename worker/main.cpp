// expertmesh-worker: holds experts and runs rows through them. Started by a coordinator, never by hand.
#include "worker/worker.h"

int main(int argc, char** argv) {
  return expertmesh::worker_main(argc, argv, nullptr);
}
