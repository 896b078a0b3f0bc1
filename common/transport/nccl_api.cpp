#include "common/transport/nccl_api.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <vector>

#include "common/base/check.h"

namespace expertmesh {
namespace {

constexpr char const* kLibrary = "libnccl.so.2";

// It stays loaded: its threads may outlive what was made of it.
struct Library {
  void* handle = nullptr;
  std::string path;

  template <class Function>
  Function* find(char const* name) const {
    return reinterpret_cast<Function*>(dlsym(handle, name));
  }
  template <class Function>
  void need(char const* name, Function*& function) const {
    function = find<Function>(name);
    if (!function) throw NcclError("dlsym", 0, std::string("it has no ") + name, path);
  }
};

// Python's wheels, in the environment that is active and in the system's.
std::vector<std::filesystem::path> package_folders() {
  std::vector<std::filesystem::path> folders;
  std::vector<std::filesystem::path> roots{"/usr/local", "/usr"};
  for (char const* const variable : {"CONDA_PREFIX", "VIRTUAL_ENV"})
    if (char const* const root = std::getenv(variable)) roots.insert(roots.begin(), root);
  std::error_code ignored;
  for (auto const& root : roots)
    for (auto const& python : std::filesystem::directory_iterator(root / "lib", ignored)) {
      if (!python.path().filename().string().starts_with("python3")) continue;
      for (char const* const packages : {"site-packages", "dist-packages"})
        folders.push_back(python.path() / packages / "nvidia/nccl/lib");
    }
  return folders;
}

Library open_library() {
  std::vector<std::string> places;
  if (char const* const named = std::getenv("EXPERTMESH_NCCL")) {
    places.emplace_back(named);
  } else {
    places.emplace_back(kLibrary);
    places.emplace_back(std::string("/usr/local/cuda/lib64/") + kLibrary);
    std::error_code ignored;
    for (auto const& folder : package_folders())
      if (std::filesystem::exists(folder / kLibrary, ignored)) places.push_back((folder / kLibrary).string());
  }
  std::string why;
  for (std::string const& place : places) {
    if (void* const handle = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL)) return {.handle = handle, .path = place};
    if (why.empty()) why = dlerror();  // of the first: the others are guesses
  }
  throw NcclError("dlopen", 0, why + " (EXPERTMESH_NCCL can name the library)", places.front());
}

class LoadedNccl final : public NcclApi {
 public:
  LoadedNccl() : library_(open_library()) {
    int (*get_version)(int*) = nullptr;
    library_.need("ncclGetVersion", get_version);
    int const code = get_version(&version_);
    if (code != 0) throw NcclError("ncclGetVersion", code, "no version", library_.path);
    if (version_ < kLeastNcclVersion)
      throw NcclError(
          "ncclGetVersion", version_,
          "NCCL " + nccl_version_text(version_) + " is too old: " + nccl_version_text(kLeastNcclVersion) + " at least",
          library_.path);
    library_.need("ncclGetUniqueId", get_unique_id_);
    library_.need("ncclCommInitRankConfig", init_);
    library_.need("ncclCommGetAsyncError", get_async_error_);
    library_.need("ncclSend", send_);
    library_.need("ncclRecv", recv_);
    library_.need("ncclGroupStart", group_start_);
    library_.need("ncclGroupEnd", group_end_);
    library_.need("ncclCommAbort", abort_);
    library_.need("ncclGetErrorString", error_string_);
    register_ = library_.find<NcclResult(NcclComm*, void*, std::size_t, void**)>("ncclCommRegister");
    revoke_ = library_.find<NcclResult(NcclComm*, int)>("ncclCommRevoke");
  }

  [[nodiscard]] int version() const override { return version_; }
  NcclResult get_unique_id(NcclUniqueId* id) override { return get_unique_id_(id); }
  NcclResult comm_init_rank_config(NcclComm** comm, int num_ranks, NcclUniqueId const& id, int rank,
                                   NcclConfig* config) override {
    return init_(comm, num_ranks, id, rank, config);
  }
  NcclResult comm_get_async_error(NcclComm* comm, NcclResult* error) override { return get_async_error_(comm, error); }
  NcclResult comm_register(NcclComm* comm, void* bytes, std::size_t count) override {
    void* handle = nullptr;
    return register_ ? register_(comm, bytes, count, &handle) : NcclResult::success;
  }
  NcclResult send(void const* bytes, std::size_t count, int peer, NcclComm* comm, void* queue) override {
    return send_(bytes, count, kNcclBytes, peer, comm, queue);
  }
  NcclResult recv(void* bytes, std::size_t count, int peer, NcclComm* comm, void* queue) override {
    return recv_(bytes, count, kNcclBytes, peer, comm, queue);
  }
  NcclResult group_start() override { return group_start_(); }
  NcclResult group_end() override { return group_end_(); }
  NcclResult comm_revoke(NcclComm* comm) override { return revoke_ ? revoke_(comm, 0) : NcclResult::success; }
  NcclResult comm_abort(NcclComm* comm) override { return abort_(comm); }
  [[nodiscard]] std::string error_text(NcclResult result) const override { return error_string_(result); }

 private:
  Library library_;
  int version_ = 0;
  NcclResult (*get_unique_id_)(NcclUniqueId*) = nullptr;
  NcclResult (*init_)(NcclComm**, int, NcclUniqueId, int, NcclConfig*) = nullptr;
  NcclResult (*get_async_error_)(NcclComm*, NcclResult*) = nullptr;
  NcclResult (*send_)(void const*, std::size_t, int, int, NcclComm*, void*) = nullptr;
  NcclResult (*recv_)(void*, std::size_t, int, int, NcclComm*, void*) = nullptr;
  NcclResult (*group_start_)() = nullptr;
  NcclResult (*group_end_)() = nullptr;
  NcclResult (*register_)(NcclComm*, void*, std::size_t, void**) = nullptr;
  NcclResult (*revoke_)(NcclComm*, int) = nullptr;
  NcclResult (*abort_)(NcclComm*) = nullptr;
  char const* (*error_string_)(NcclResult) = nullptr;
};

}  // namespace

std::string nccl_version_text(int version) {
  return std::to_string(version / 10000) + "." + std::to_string(version % 10000 / 100) + "." +
         std::to_string(version % 100);
}

std::shared_ptr<NcclApi> load_nccl() {
  return std::make_shared<LoadedNccl>();
}

}  // namespace expertmesh
