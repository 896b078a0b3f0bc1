// Return codes of MPI calls as MpiError: call, code, the library's text, and the peer it was about.
#pragma once
#include <string>

namespace expertmesh {

std::string mpi_error_text(int code);

// Throws MpiError unless `code` is MPI_SUCCESS.
void mpi_check(int code, char const* call, std::string const& peer = {});

}  // namespace expertmesh
