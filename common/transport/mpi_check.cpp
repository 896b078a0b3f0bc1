#include "common/transport/mpi_check.h"

#include <mpi.h>

#include <array>

#include "common/base/error.h"

namespace expertmesh {

std::string mpi_error_text(int code) {
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  if (MPI_Error_string(code, text.data(), &length) != MPI_SUCCESS) return "unknown error";
  return {text.data(), static_cast<std::size_t>(length)};
}

void mpi_check(int code, char const* call, std::string const& peer) {
  if (code != MPI_SUCCESS) throw MpiError(call, code, mpi_error_text(code), peer);
}

}  // namespace expertmesh
