// SPDX-License-Identifier: Apache-2.0
// Another library as a backend, so that it stands in the bench's table beside ours: one interpreter of Python in this
// process, in it one of the modules beside this file, and no copy of a tensor between them.
//
// CMakeLists.txt compiles this once for each peer that it finds in the virtual environment of ci/peers, with
//   ATTEST_PEER_NAME, ATTEST_PEER_VERSION, ATTEST_PEER_DESCRIPTION   what the table says
//   ATTEST_PEER_MODULE, ATTEST_PEER_FOLDER                           the module, and where it lies
//   ATTEST_PEER_PYTHON                                               the environment's interpreter
//
// A module has
//   open(threads: int, options: dict[str, str]) -> context      options: those of OPTIONS, a tuple of names
//   context.plan(problem: SimpleNamespace) -> plan               NotImplementedError: the problem is UNSUPPORTED
//   plan.bind(step: SimpleNamespace) -> callable                 NotImplementedError: UNSUPPORTED; ValueError: INVALID
// bind makes its views of the step's memory; calling what it answers is the step: it appends and attends. The same
// memory with the same lengths is bound only once, because a user of these libraries has his tensors at hand too.
//
// The ABI has UNSUPPORTED for `prepare` and `open`, but no problem says in which order a cache lies in memory, or how
// long its sequences are. A library that cannot take these says so in a step: attest bench heeds it in a plan's first
// one (spec/bench.md), attest certify never.
#include <Python.h>
#include <dlfcn.h>
#include <sched.h>

#include <attest/backend.hpp>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

using namespace attest::abi;

/// The interpreter's lock, which every call below needs.
class Gil {
 public:
  Gil() : state_(PyGILState_Ensure()) {}
  ~Gil() { PyGILState_Release(state_); }
  Gil(const Gil&) = delete;
  Gil& operator=(const Gil&) = delete;

 private:
  PyGILState_STATE state_;
};

struct Drop {
  void operator()(PyObject* object) const { Py_DECREF(object); }
};
using Object = std::unique_ptr<PyObject, Drop>;

std::string text_of(PyObject* object) {
  const Object text(object != nullptr ? PyObject_Str(object) : nullptr);
  const char* utf8 = text ? PyUnicode_AsUTF8(text.get()) : nullptr;
  PyErr_Clear();
  return utf8 != nullptr ? utf8 : "unknown";
}

/// Throws what Python has raised.
[[noreturn]] void raise_again() {
  PyObject *type = nullptr, *value = nullptr, *traceback = nullptr;
  PyErr_Fetch(&type, &value, &traceback);
  PyErr_NormalizeException(&type, &value, &traceback);
  const Object own_type(type), own_value(value), own_traceback(traceback);
  std::string text = text_of(value);
  if (PyErr_GivenExceptionMatches(type, PyExc_NotImplementedError) != 0) throw Unsupported(text);
  if (PyErr_GivenExceptionMatches(type, PyExc_ValueError) != 0) throw Invalid(text);
  throw std::runtime_error(std::string(reinterpret_cast<PyTypeObject*>(type)->tp_name) + ": " + text);
}

Object checked(PyObject* object) {
  if (object == nullptr) raise_again();
  return Object(object);
}

void set(PyObject* dict, const char* name, const Object& value) {
  if (PyDict_SetItemString(dict, name, value.get()) != 0) raise_again();
}

Object number(std::int64_t value) {
  return checked(PyLong_FromLongLong(value));
}

template <class At>
Object numbers(std::int64_t count, At&& at) {
  Object tuple = checked(PyTuple_New(count));
  for (std::int64_t i = 0; i < count; ++i) PyTuple_SET_ITEM(tuple.get(), i, number(at(i)).release());
  return tuple;
}

Object numbers(const Counts& counts) {
  return numbers(counts.batch(), [&](std::int64_t b) { return counts[b]; });
}

/// Attributes instead of a dictionary's brackets.
Object namespace_of(const Object& dict) {
  const Object types = checked(PyImport_ImportModule("types"));
  const Object type = checked(PyObject_GetAttrString(types.get(), "SimpleNamespace"));
  const Object nothing = checked(PyTuple_New(0));
  return checked(PyObject_Call(type.get(), nothing.get(), dict.get()));
}

/// (memory, dtype, shape, strides in elements), or None.
Object tensor(const DLTensor* given) {
  if (given == nullptr) return Object(Py_NewRef(Py_None));
  std::int64_t last = 0, size = 1;
  for (int axis = 0; axis < given->ndim; ++axis) {
    size *= given->shape[axis];
    if (given->shape[axis] > 1) last += (given->shape[axis] - 1) * given->strides[axis];
  }
  const std::int64_t bytes = size == 0 ? 0 : (last + 1) * (given->dtype.bits / 8);
  char* const data = given->data == nullptr ? nullptr : static_cast<char*>(given->data) + given->byte_offset;
  static char nothing;
  const Object memory = checked(PyMemoryView_FromMemory(bytes == 0 ? &nothing : data, bytes, PyBUF_WRITE));
  const Object dtype = checked(PyUnicode_FromString(to_string(given->dtype).c_str()));
  const Object shape = numbers(given->ndim, [&](std::int64_t axis) { return given->shape[axis]; });
  const Object strides = numbers(
      given->ndim, [&](std::int64_t axis) { return given->shape[axis] > 1 ? given->strides[axis] : std::int64_t{0}; });
  return checked(PyTuple_Pack(4, memory.get(), dtype.get(), shape.get(), strides.get()));
}

/// Those that this thread may use; the suite's workers, which share the cores, say how many by OpenMP's variable.
int cores() {
  const char* const shared = std::getenv("OMP_NUM_THREADS");
  if (const int given = shared != nullptr ? std::atoi(shared) : 0; given > 0) return given;
  cpu_set_t set;
  return ::sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

/// Starts the interpreter, unless another peer has; it stays until the process ends.
void start_python() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (Py_IsInitialized() != 0) return;
    // Python's extension modules expect its symbols to be global, and whoever has loaded this library kept them local.
    Dl_info self{};
    const bool found = ::dladdr(reinterpret_cast<void*>(&Py_InitializeFromConfig), &self) != 0;
    if (!found || ::dlopen(self.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD) == nullptr) {
      throw std::runtime_error("libpython's symbols cannot be made global");
    }
    PyConfig config;
    PyConfig_InitIsolatedConfig(&config);
    config.install_signal_handlers = 0;
    config.write_bytecode = 0;
    // The program's place is what leads Python to the environment's modules.
    PyStatus status = PyConfig_SetBytesString(&config, &config.program_name, ATTEST_PEER_PYTHON);
    if (PyStatus_Exception(status) == 0) status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status) != 0) {
      throw std::runtime_error(std::string("Python does not start: ") +
                               (status.err_msg != nullptr ? status.err_msg : ""));
    }
    PyEval_SaveThread();
  });
}

class Peer {
 public:
  static constexpr const char* name = ATTEST_PEER_NAME;
  static constexpr const char* version = ATTEST_PEER_VERSION;
  static std::string description() { return ATTEST_PEER_DESCRIPTION; }

  explicit Peer(Options& options) {
    // Now: an OpenMP that a module brings along may bind this thread to one core.
    const int threads = options.take_count("threads", cores());
    start_python();
    const Gil gil;
    const Object folder = checked(PyUnicode_FromString(ATTEST_PEER_FOLDER));
    PyObject* const path = PySys_GetObject("path");  // borrowed
    const int known = path != nullptr ? PySequence_Contains(path, folder.get()) : 1;
    if (known < 0 || (known == 0 && PyList_Insert(path, 0, folder.get()) != 0)) raise_again();
    const Object module = checked(PyImport_ImportModule(ATTEST_PEER_MODULE));
    const Object names = checked(PyObject_GetAttrString(module.get(), "OPTIONS"));
    const Object given = checked(PyDict_New());
    for (Py_ssize_t i = 0; i < PyTuple_Size(names.get()); ++i) {
      const std::string option = text_of(PyTuple_GetItem(names.get(), i));
      if (const std::string value = options.take(option, ""); !value.empty()) {
        set(given.get(), option.c_str(), checked(PyUnicode_FromString(value.c_str())));
      }
    }
    context_ = checked(PyObject_CallMethod(module.get(), "open", "iO", threads, given.get()));
  }
  ~Peer() {
    const Gil gil;
    context_.reset();
  }
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;

  class Plan {
   public:
    Plan(Peer& peer, const attest_problem& problem) : problem_(problem) {
      check_problem(problem);
      require_only(problem, {.f32 = true,
                             .f16 = true,
                             .bf16 = true,
                             .causal_bottom_right = true,
                             .packed = true,
                             .contiguous_cache = true});
      const Gil gil;
      const Object fields = checked(PyDict_New());
      set(fields.get(), "dtype", checked(PyUnicode_FromString(to_string(problem.dtype).c_str())));
      set(fields.get(), "batch", number(problem.batch));
      set(fields.get(), "query_heads", number(problem.query_heads));
      set(fields.get(), "kv_heads", number(problem.kv_heads));
      set(fields.get(), "qk_head_dim", number(problem.qk_head_dim));
      set(fields.get(), "v_head_dim", number(problem.v_head_dim));
      const double scale = problem.scale != 0 ? problem.scale : 1 / std::sqrt(static_cast<double>(problem.qk_head_dim));
      set(fields.get(), "scale", checked(PyFloat_FromDouble(scale)));
      set(fields.get(), "causal", number(problem.causal != ATTEST_CAUSAL_NONE ? 1 : 0));
      set(fields.get(), "cached", number(problem.cache != ATTEST_CACHE_NONE ? 1 : 0));
      set(fields.get(), "capacity", number(problem.capacity));
      set(fields.get(), "packed", number(problem.packed));
      const Object space = namespace_of(fields);
      plan_ = checked(PyObject_CallMethod(peer.context_.get(), "plan", "O", space.get()));
    }
    ~Plan() {
      const Gil gil;
      bound_.clear();
      plan_.reset();
    }
    Plan(const Plan&) = delete;
    Plan& operator=(const Plan&) = delete;

    void run(const attest_step& step) {
      const Extents extents = check_step(problem_, step);
      const Gil gil;
      identify(step, extents);
      auto bound = bound_.find(identity_);
      if (bound == bound_.end()) {
        if (bound_.size() >= kMostBound) bound_.clear();
        bound = bound_.emplace(identity_, bind(step, extents)).first;
      }
      checked(PyObject_CallNoArgs(bound->second.get()));
      if (step.cache == nullptr) return;
      View<std::int32_t, 1> lengths(*step.cache->lengths);
      for (std::int64_t b = 0; b < problem_.batch; ++b) lengths(b) = static_cast<std::int32_t>(extents.total(b));
    }

   private:
    static constexpr std::size_t kMostBound = 8192;

    static void add(std::string& bytes, std::int64_t value) {
      bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
    }
    static void add(std::string& bytes, const DLTensor* given) {
      if (given == nullptr) return add(bytes, std::int64_t{-1});
      add(bytes, static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(given->data) + given->byte_offset));
      for (int axis = 0; axis < given->ndim; ++axis) {
        add(bytes, given->shape[axis]);
        add(bytes, given->strides[axis]);
      }
    }
    /// What makes two steps the same for `bind`, all in one text.
    void identify(const attest_step& step, const Extents& extents) {
      identity_.clear();
      for (const DLTensor* given : {step.query, step.key, step.value, static_cast<const DLTensor*>(step.output)}) {
        add(identity_, given);
      }
      if (step.cache != nullptr) {
        add(identity_, step.cache->key);
        add(identity_, step.cache->value);
      }
      for (std::int64_t b = 0; b < problem_.batch; ++b) {
        for (const Counts* counts :
             {&extents.queries, &extents.past, &extents.keys, &extents.query_start, &extents.key_start}) {
          add(identity_, (*counts)[b]);
        }
      }
    }

    Object bind(const attest_step& step, const Extents& extents) {
      const Object fields = checked(PyDict_New());
      set(fields.get(), "query", tensor(step.query));
      set(fields.get(), "key", tensor(step.key));
      set(fields.get(), "value", tensor(step.value));
      set(fields.get(), "output", tensor(step.output));
      set(fields.get(), "cache_key", tensor(step.cache != nullptr ? step.cache->key : nullptr));
      set(fields.get(), "cache_value", tensor(step.cache != nullptr ? step.cache->value : nullptr));
      set(fields.get(), "queries", numbers(extents.queries));
      set(fields.get(), "past", numbers(extents.past));
      set(fields.get(), "keys", numbers(extents.keys));
      set(fields.get(), "query_start", numbers(extents.query_start));
      set(fields.get(), "key_start", numbers(extents.key_start));
      const Object space = namespace_of(fields);
      return checked(PyObject_CallMethod(plan_.get(), "bind", "O", space.get()));
    }

    attest_problem problem_;
    Object plan_;
    std::string identity_;
    std::unordered_map<std::string, Object> bound_;
  };

 private:
  Object context_;
};

}  // namespace

ATTEST_REGISTER_BACKEND(Peer)
