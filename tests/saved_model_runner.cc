// Runs signatures of a SavedModel without Python, through the C++ loader that TF Serving uses.
//
//     saved_model_runner SAVED_MODEL_DIR REQUEST_FILE RESPONSE_FILE [THREADS ROUNDS]
//
// Given THREADS and ROUNDS, each thread runs all requests that many times, and the file has the
// last round's responses, thread after thread. Prints by how many KiB the process grew meanwhile,
// after a first round of one thread.
//
// Exit status: 0 when every request has its response (which may be an error of its own),
// 2 for wrong usage or an unreadable file, 3 when TensorFlow does not load the model.
//
// Both files are in the byte order of the machine; saved_model_runner.py has the other side:
//
//     int      = int64
//     string   = int length, bytes
//     tensor   = string name, int TF_DataType, int rank, int dims[rank], bytes of the elements
//     request  = string signature, int count, tensors
//     response = int TF_Code, string message, int count, tensors (none after an error)
//     file     = int count, requests or responses
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "tensorflow/c/c_api.h"

namespace {

struct Error {  // of TensorFlow, or of a request that does not fit the model
  TF_Code code;
  std::string message;
};

struct FileError : std::runtime_error {
  using runtime_error::runtime_error;
};

struct Status : std::unique_ptr<TF_Status, decltype(&TF_DeleteStatus)> {
  Status() : unique_ptr(TF_NewStatus(), TF_DeleteStatus) {}
  void check() const {
    if (TF_GetCode(get()) != TF_OK) throw Error{TF_GetCode(get()), TF_Message(get())};
  }
};

using Tensor = std::unique_ptr<TF_Tensor, decltype(&TF_DeleteTensor)>;
using Tensors = std::map<std::string, Tensor>;
using Ports = std::map<std::string, TF_Output>;  // name for clients -> place in the graph

struct Signature {
  Ports inputs, outputs;
};

struct Request {
  std::string signature;
  Tensors inputs;
};

// ---- protobuf wire format: enough of it to find the tensor names of a signature ----

uint64_t ReadVarint(std::string_view* from) {
  uint64_t value = 0;
  for (int shift = 0; !from->empty() && shift < 64; shift += 7) {
    const uint8_t byte = from->front();
    from->remove_prefix(1);
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) break;
  }
  return value;
}

// All values, in order, of the fields with this number that have a length: strings and messages.
std::vector<std::string_view> Fields(std::string_view message, uint64_t number) {
  std::vector<std::string_view> values;
  while (!message.empty()) {
    const uint64_t key = ReadVarint(&message), wire_type = key & 7;
    uint64_t size = 0;
    if (wire_type == 0) ReadVarint(&message);
    if (wire_type == 1) size = 8;
    if (wire_type == 2) size = ReadVarint(&message);
    if (wire_type == 5) size = 4;
    if (size > message.size()) throw Error{TF_DATA_LOSS, "the MetaGraphDef is truncated"};
    if (wire_type == 2 && key >> 3 == number) values.push_back(message.substr(0, size));
    message.remove_prefix(size);
  }
  return values;
}

// A protobuf map is a repeated message with the key in field 1 and the value in field 2.
std::map<std::string, std::string_view> Map(std::string_view message, uint64_t number) {
  std::map<std::string, std::string_view> map;
  for (std::string_view entry : Fields(message, number)) {
    const auto key = Fields(entry, 1), value = Fields(entry, 2);  // left out when empty
    map[key.empty() ? "" : std::string(key.back())] = value.empty() ? "" : value.back();
  }
  return map;
}

// ---- load, resolve, run ----

struct Model {
  TF_Graph* graph = TF_NewGraph();
  TF_Buffer* meta_graph = TF_NewBuffer();  // a serialized MetaGraphDef, which has the signatures
  TF_Session* session = nullptr;

  explicit Model(const char* directory) {
    Status status;
    const char* const tags[] = {"serve"};
    TF_SessionOptions* options = TF_NewSessionOptions();
    session = TF_LoadSessionFromSavedModel(options, nullptr, directory, tags, 1, graph, meta_graph,
                                           status.get());
    TF_DeleteSessionOptions(options);
    status.check();
  }
  Model(const Model&) = delete;
  ~Model() {
    Status ignored;
    TF_DeleteSession(session, ignored.get());
    TF_DeleteBuffer(meta_graph);
    TF_DeleteGraph(graph);
  }
};

// `infos` is a map<string, TensorInfo>. TensorInfo.name is field 1: "operation:index".
Ports ResolvePorts(const Model& model, const std::map<std::string, std::string_view>& infos) {
  Ports ports;
  for (const auto& [name, info] : infos) {
    const auto tensor = Fields(info, 1);
    if (tensor.empty()) throw Error{TF_UNIMPLEMENTED, "'" + name + "' is not a dense tensor"};
    const std::string place(tensor.back());
    const size_t colon = place.find(':');
    const int index = colon == place.npos ? 0 : std::atoi(place.c_str() + colon + 1);
    TF_Operation* op = TF_GraphOperationByName(model.graph, place.substr(0, colon).c_str());
    if (op == nullptr || index < 0 || index >= TF_OperationNumOutputs(op))
      throw Error{TF_INTERNAL, "the graph has no tensor " + place};
    ports[name] = {op, index};
  }
  return ports;
}

// MetaGraphDef.signature_def is field 5; SignatureDef has inputs in field 1, outputs in field 2.
Signature Resolve(const Model& model, const std::string& name) {
  const std::string_view meta_graph(static_cast<const char*>(model.meta_graph->data),
                                    model.meta_graph->length);
  const auto signatures = Map(meta_graph, 5);
  const auto found = signatures.find(name);
  if (found == signatures.end())
    throw Error{TF_NOT_FOUND, "the model has no signature '" + name + "'"};
  return {ResolvePorts(model, Map(found->second, 1)), ResolvePorts(model, Map(found->second, 2))};
}

// As in any session, types are checked here by TensorFlow, but shapes only by the kernels: an
// input that does not fit the shape of the signature can give outputs instead of an error.
Tensors Run(const Model& model, const Signature& signature, const Tensors& inputs) {
  std::vector<TF_Output> in, out;
  std::vector<TF_Tensor*> fed, fetched(signature.outputs.size());
  for (const auto& [name, place] : signature.inputs) {
    const auto found = inputs.find(name);
    if (found == inputs.end()) throw Error{TF_INVALID_ARGUMENT, "input '" + name + "' is missing"};
    in.push_back(place);
    fed.push_back(found->second.get());
  }
  if (inputs.size() != in.size()) throw Error{TF_INVALID_ARGUMENT, "there are unknown inputs"};
  for (const auto& [name, place] : signature.outputs) out.push_back(place);

  Status status;
  TF_SessionRun(model.session, nullptr, in.data(), fed.data(), in.size(), out.data(),
                fetched.data(), out.size(), nullptr, 0, nullptr, status.get());
  status.check();
  Tensors outputs;
  auto next = fetched.begin();
  for (const auto& [name, place] : signature.outputs)
    outputs.emplace(name, Tensor(*next++, TF_DeleteTensor));
  for (const auto& [name, tensor] : outputs)  // a string has no raw bytes to write
    if (TF_DataTypeSize(TF_TensorType(tensor.get())) == 0)
      throw Error{TF_UNIMPLEMENTED, "output '" + name + "' is not of numbers"};
  return outputs;
}

// ---- request and response files ----

void ReadBytes(std::istream& file, void* to, size_t size) {
  file.read(static_cast<char*>(to), size);
  if (!file) throw FileError{"the request file ends too early"};
}

int64_t ReadInt(std::istream& file) {
  int64_t value;
  ReadBytes(file, &value, sizeof value);
  if (value < 0 || value > INT32_MAX) throw FileError{"the request file has a bad number"};
  return value;
}

std::string ReadString(std::istream& file) {
  std::string text(ReadInt(file), '\0');
  ReadBytes(file, text.data(), text.size());
  return text;
}

Tensor ReadTensor(std::istream& file) {
  const auto type = static_cast<TF_DataType>(ReadInt(file));
  size_t size = TF_DataTypeSize(type);
  if (size == 0) throw FileError{"the request file has a tensor that is not of numbers"};
  std::vector<int64_t> dims(ReadInt(file));
  for (int64_t& dim : dims) {
    dim = ReadInt(file);
    if (__builtin_mul_overflow(size, static_cast<size_t>(dim), &size))
      throw FileError{"the request file has a tensor that is too large"};
  }
  // Memory of TensorFlow has the alignment that its kernels want.
  Tensor tensor(TF_AllocateTensor(type, dims.data(), dims.size(), size), TF_DeleteTensor);
  if (size > 0 && TF_TensorData(tensor.get()) == nullptr) throw FileError{"no memory"};
  ReadBytes(file, TF_TensorData(tensor.get()), size);
  return tensor;
}

Tensors ReadTensors(std::istream& file) {
  Tensors tensors;
  for (int64_t left = ReadInt(file); left > 0; left--) {
    const std::string name = ReadString(file);
    tensors.emplace(name, ReadTensor(file));
  }
  return tensors;
}

std::vector<Request> ReadRequests(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw FileError{std::string("cannot open ") + path};
  std::vector<Request> requests;
  for (int64_t left = ReadInt(file); left > 0; left--) {
    std::string signature = ReadString(file);
    requests.push_back({std::move(signature), ReadTensors(file)});
  }
  return requests;
}

// An error of writing stays in the stream, and is found when the file is closed.
void WriteInt(std::ostream& file, int64_t value) {
  file.write(reinterpret_cast<const char*>(&value), sizeof value);
}

void WriteString(std::ostream& file, const std::string& text) {
  WriteInt(file, text.size());
  file << text;
}

void WriteResponse(std::ostream& file, const Error& error, const Tensors& tensors) {
  WriteInt(file, error.code);
  WriteString(file, error.message);
  WriteInt(file, tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const TF_Tensor* t = tensor.get();
    WriteString(file, name);
    WriteInt(file, TF_TensorType(t));
    WriteInt(file, TF_NumDims(t));
    for (int i = 0; i < TF_NumDims(t); i++) WriteInt(file, TF_Dim(t, i));
    file.write(static_cast<const char*>(TF_TensorData(t)), TF_TensorByteSize(t));
  }
}

std::string Respond(const Model& model, const Request& request) {
  std::ostringstream response;
  try {
    const Signature signature = Resolve(model, request.signature);
    WriteResponse(response, {TF_OK, ""}, Run(model, signature, request.inputs));
  } catch (const Error& error) {
    WriteResponse(response, error, {});
  }
  return response.str();
}

std::string RespondToAll(const Model& model, const std::vector<Request>& requests) {
  std::string responses;
  for (const Request& request : requests) responses += Respond(model, request);
  return responses;
}

long ResidentKiB() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind("VmRSS:", 0) == 0) return std::atol(line.c_str() + 6);
  return 0;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 4 && argc != 6)
    throw FileError{
        "usage: saved_model_runner SAVED_MODEL_DIR REQUEST_FILE RESPONSE_FILE [THREADS ROUNDS]"};
  const std::vector<Request> requests = ReadRequests(argv[2]);
  const Model model(argv[1]);
  std::vector<std::string> responses{RespondToAll(model, requests)};
  if (argc == 6) {
    const int rounds = std::atoi(argv[5]);
    const long before = ResidentKiB();
    responses.resize(std::atoi(argv[4]));
    std::vector<std::thread> threads;
    for (std::string& mine : responses)
      threads.emplace_back([&] {
        for (int round = 0; round < rounds; ++round) mine = RespondToAll(model, requests);
      });
    for (std::thread& thread : threads) thread.join();
    std::printf("%ld\n", ResidentKiB() - before);
  }
  std::ofstream file(argv[3], std::ios::binary);
  WriteInt(file, requests.size() * responses.size());
  for (const std::string& each : responses) file << each;
  file.close();
  if (!file) throw FileError{std::string("cannot write ") + argv[3]};
  return 0;
} catch (const Error& error) {
  std::fprintf(stderr, "saved_model_runner: status %d: %s\n", error.code, error.message.c_str());
  return 3;
} catch (const std::exception& error) {
  std::fprintf(stderr, "saved_model_runner: %s\n", error.what());
  return 2;
}
